"""Batches reach the device whole and in order."""

import pytest
import torch

from raymerge.staging import batches_on

IMAGES = torch.arange(7 * 4 * 5 * 3).to(torch.uint8).reshape(7, 4, 5, 3)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (100, [7])])
def test_batches(device, size, sizes):
    batches = [batch.clone() for batch in batches_on(device, IMAGES, size)]
    assert [len(batch) for batch in batches] == sizes
    assert {batch.device.type for batch in batches} == {device.type}
    assert torch.equal(torch.cat(batches).cpu(), IMAGES)


def test_on_a_cpu_nothing_is_copied():
    first = next(batches_on(torch.device("cpu"), IMAGES, 3))
    assert first.data_ptr() == IMAGES.data_ptr()


@pytest.mark.gpu
def test_many_batches_while_the_device_computes():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images = torch.randint(0, 256, (512, 64, 64, 3), dtype=torch.uint8)
    matrix = torch.randn(4096, 4096, device="cuda")
    sums = []
    for batch in batches_on(torch.device("cuda"), images, 32):
        for _ in range(8):
            matrix @ matrix  # the sums wait behind these, while later batches are being copied
        sums.append(batch.long().sum(dim=(1, 2, 3)))
    assert torch.equal(torch.cat(sums).cpu(), images.long().sum(dim=(1, 2, 3)))


def test_stopping_in_the_middle(device):
    batches = batches_on(device, IMAGES, 2)
    assert torch.equal(next(batches).cpu(), IMAGES[:2])
    batches.close()
