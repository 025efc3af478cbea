"""The benchmarks of evaluation: all sides do the same work on real files, and the figures follow from the turns."""

import json
from pathlib import Path

import pytest
import tiny_suite
import torch
from PIL import Image
from tiny_suite import BACKBONE
from torch import Tensor, nn
from typer.testing import CliRunner

from raymerge import cluster
from raymerge.agreement import measure_agreement
from raymerge.bench import evaluate as bench
from raymerge.bench import published_way
from raymerge.bench.evaluate import Timed, Turn, time_backbone
from raymerge.cli import app
from raymerge.cli_bench_evaluate import _timed_table
from raymerge.data.transforms import to_pixels
from raymerge.images import open_images
from raymerge.streams import render
from raymerge.suites import CLIP_MEAN, CLIP_STD, Suite

CPU = torch.device("cpu")
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
}


@pytest.fixture
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(bench.MODELS, "ViT-B-32", TINY)
    return "ViT-B-32"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return tiny_suite.tiny_suite(tmp_path_factory.mktemp("suite"), num_tasks=2)


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", *args])
    return result.exit_code, result.stdout, result.stderr


# --- figures ---------------------------------------------------------------------------------------------------------


TIMED = Timed(
    backbone="ViT-B-32",
    precision="fp32",
    batch_size=4,
    images=8,
    evaluator=(Turn(4.0, 2.0), Turn(2.0, 2.0), Turn(8.0, 4.0)),
    bare=(Turn(3.0, 1.0), Turn(2.0, 3.0), Turn(4.0, 2.0)),
    published=(Turn(8.0, 6.0), Turn(3.0, 4.0), Turn(8.0, 16.0)),
    agreed=7,
    switch_s=(1.0, 0.25, 3.0),
)


def test_figures_follow_from_the_turns():
    assert TIMED.shares == [0.75, 1.0, 0.5]
    assert TIMED.cpu_shares == [0.5, 1.5, 0.5]
    assert TIMED.gains == [2.0, 1.5, 1.0]
    assert TIMED.cpu_gains == [3.0, 2.0, 4.0]
    assert TIMED.images_per_s == 2.0
    assert TIMED.switch_in_batches == pytest.approx(1.0 / 1.5), "a batch of 4 is half of the 3 seconds"


@pytest.mark.parametrize("on_cpu", [True, False])
def test_table(capsys, monkeypatch, on_cpu):
    monkeypatch.setenv("COLUMNS", "400")
    render(_timed_table([TIMED], on_cpu))
    title, *_, line, _ = capsys.readouterr().out.splitlines()
    assert title.startswith("Speed of an evaluator: share of a bare loop of its encoder")
    cells = [cell.strip() for cell in line.strip("│ ").split("│")]
    share, cpu_share = ["75.0", "50.0 to 100.0"], ["50.0", "50.0 to 150.0"] if on_cpu else []
    gain, switch = ["1.50", "1.00 to 2.00"], ["1000.0", "0.67"]
    assert cells == ["ViT-B-32", "fp32", "4", "8", "2.0", *share, *cpu_share, *gain, "7 of 8", *switch]


# --- sides -----------------------------------------------------------------------------------------------------------


def test_photos_are_jpegs_that_repeat_and_differ(tmp_path):
    paths = published_way.write_photos(tmp_path / "a", 3)
    again = published_way.write_photos(tmp_path / "b", 3)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert len({path.read_bytes() for path in paths}) == 3
    for path in paths:
        with Image.open(path) as photo:
            assert (photo.format, photo.size, photo.mode) == ("JPEG", (500, 375), "RGB")
        assert 20_000 < path.stat().st_size < 200_000, "as photos are"


class Brightest(nn.Module):
    """Features are the mean of every channel."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def test_the_published_way_by_hand(tmp_path):
    colours = [(9, 0, 0), (0, 0, 200), (0, 90, 0), (250, 100, 0)]
    (tmp_path / "one class").mkdir()
    for number, colour in enumerate(colours):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "one class" / f"{number}.png")

    def transform(photo: Image.Image) -> Tensor:
        return torch.tensor(photo.getpixel((0, 0)), dtype=torch.float32).view(3, 1, 1).expand(3, 2, 2)

    loader = published_way.photo_loader(tmp_path, transform, workers=0)
    classes = published_way.evaluate(Brightest(), loader, torch.eye(3), torch.tensor([0.0, 0.6, 0.0]))
    # of unit length (0.93, 0.37, 0), the last one is moved by the bias
    assert torch.cat(list(classes)).tolist() == [0, 2, 1, 1]


def test_every_side_gets_the_same_images(tmp_path, tiny_model):
    world = bench._make_world(tmp_path, tiny_model, 5, CPU, loader_workers=0)
    photos = sorted((tmp_path / "raw").rglob("*.jpg"))
    cached, labels = open_images(world.suite.images_path("photos", "val")).read(0, 5)
    assert torch.equal(cached, torch.stack([torch.from_numpy(to_pixels(Image.open(path), 32)) for path in photos]))
    loaded = torch.cat([images for images, _ in published_way.photo_loader(world.photos, bench._transform(world), 0)])
    in_memory = bench._normalised(world, CPU)
    assert in_memory.is_contiguous()
    torch.testing.assert_close(loaded, in_memory)
    exact = (cached.double() / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    torch.testing.assert_close(in_memory, exact.permute(0, 3, 1, 2).float())
    evaluator, encoder = bench._evaluator(world, "fp32", None, CPU)
    assert torch.equal(evaluator.predict(cached, world.weight, world.bias), labels)
    assert len(set(labels.tolist())) > 1, "answers that say something"
    assert torch.equal(torch.cat(list(evaluator.encode(cached))), encoder(in_memory))


@pytest.mark.ray
@pytest.mark.slow
def test_a_backbone_is_timed(tiny_model):
    told: list[str] = []
    with cluster.connected(None):
        rows = time_backbone(
            tiny_model, images=6, repeats=2, precisions=["fp32", "bf16"], batch_size=4, device=CPU, report=told.append
        )
    assert [(row.backbone, row.precision, row.batch_size, row.images) for row in rows] == [
        ("ViT-B-32", "fp32", 4, 6),
        ("ViT-B-32", "bf16", 4, 6),
    ]
    assert rows[0].agreed == 6
    assert 0 <= rows[1].agreed <= 6
    for row in rows:
        assert len(row.evaluator) == len(row.bare) == len(row.published) == 2
        assert all(turn.wall_s > 0 for turn in (*row.evaluator, *row.bare, *row.published))
        assert len(row.switch_s) == bench.SWITCHES
        assert min(row.switch_s) > 0
    assert "ViT-B-32, bf16: turn 2 of 2" in told


@pytest.mark.ray
def test_evaluate_command(tiny_model):
    code, stdout, stderr = run("evaluate", "--images", "3", "--repeats", "1", "--batch-size", "2", "--quiet", "--json")
    assert (code, stderr) == (0, "")
    found = json.loads(stdout)
    assert (found["device"], found["threads"], found["loader_workers"]) == ("cpu", 1, 0)
    (row,) = found["rows"]
    assert (row["backbone"], row["precision"], row["batch_size"], row["agreed"]) == ("ViT-B-32", "fp32", 2, 3)
    assert row["shares"] == [row["bare"][0]["wall_s"] / row["evaluator"][0]["wall_s"]]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["evaluate", "--backbone", "ViT-B-8"], "--backbone: there is no 'ViT-B-8'. Did you mean "),
        (["agreement", "--suite", "demo", "--precision", "bf32"], "--precision: there is no half precision 'bf32'."),
        (["agreement", "--suite", "demo", "--precision", ","], "--precision names no precision; give bf16, fp16, or"),
        (["agreement", "--suite", "demo", "--tasks", "Shapez"], "suite 'demo' has no task 'Shapez'. Did you mean "),
    ],
)
def test_mistakes(args, message):
    code, stdout, stderr = run(*args)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {message}")
    assert stderr.count("\n") == 1


# --- agreement -------------------------------------------------------------------------------------------------------


def test_agreement_command(suite):
    args = ("--suite", str(suite.root), "--quiet", "--split", "test")
    code, stdout, stderr = run("agreement", *args, "--json")
    assert (code, stderr) == (0, "")
    found = json.loads(stdout)
    assert {key: found[key] for key in ("suite", "split", "experts")} == {
        "suite": "tiny",
        "split": "test",
        "experts": False,
    }
    expected = measure_agreement(suite, BACKBONE, ["Task0", "Task1"], ["bf16", "fp16"], device=CPU, split="test")
    counts = ("task", "precision", "images", "same", "correct", "reference_correct")
    assert [[row[key] for key in counts] for row in found["rows"]] == [
        [getattr(row, key) for key in counts] for row in expected
    ]
    assert [row["agreement"] for row in found["rows"]] == [row.agreement for row in expected]

    code, stdout, stderr = run("agreement", *args, "--precision", "bf16", "--experts", "--tasks", "Task1")
    assert (code, stderr) == (0, "")
    (row,) = measure_agreement(suite, BACKBONE, ["Task1"], ["bf16"], device=CPU, split="test", experts=True)
    percents = [f"{100 * count / 24:.2f}" for count in (row.reference_correct, row.correct, row.same)]
    lines = [line.replace("│", " ").split() for line in stdout.splitlines()]
    assert "the experts: percent of images" in stdout
    assert ["Task1", "24", *percents] in lines
    assert ["All", "24", *percents] in lines


def test_agreement_without_its_files(suite, tmp_path: Path):
    code, stdout, stderr = run("agreement", "--suite", str(tmp_path), "--quiet")
    assert (code, stdout) == (4, "")
    assert "suite.json: cannot be read" in stderr
