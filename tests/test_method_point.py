"""Parameters and alpha of one merge, against what the methods declare."""

import numpy as np
import pytest
import torch
from some_models import MERGING, SETTINGS

from raymerge.errors import UsageError
from raymerge.method_point import MethodPoint, merging_method, point_of, read_params
from raymerge.methods import METHODS, declared_methods
from raymerge.methods._method import FixedAlpha


def refused(name: str, texts: list[str], alpha: object = 1.0, num_tasks: int = 3, update_only: bool = False) -> str:
    method = merging_method(name)
    with pytest.raises(UsageError) as caught:
        point_of(method, read_params(method, texts), alpha, num_tasks, update_only=update_only)
    return str(caught.value)


def test_a_point_by_hand():
    method = merging_method("scale-svd")
    texts = ["sparsity=0.25", "prune_level = element", "num_iters=3"]
    assert point_of(method, read_params(method, texts), 0.5, 4) == MethodPoint(
        "scale-svd",
        {"sparsity": 0.25, "rank_ratio": 0.75, "num_iters": 3.0, "prune_level": "element", "apply": "per_task"},
        0.5,
    )


@pytest.mark.parametrize("name", MERGING)
def test_every_method_has_a_point_of_defaults(name):
    method = merging_method(name)
    alpha = None if isinstance(method.alpha, FixedAlpha) else 0.7
    point = point_of(method, {}, alpha, 4)
    assert point.params == {parameter.name: parameter.default for parameter in method.parameters}
    assert point.alpha == (0.25 if alpha is None else 0.7)
    assert all(type(value) in (float, str) for value in point.params.values())
    assert point_of(method, SETTINGS[name], alpha, 3).params.items() >= SETTINGS[name].items()


def test_a_parameter_per_task():
    method = merging_method("consensus-ta")
    assert point_of(method, read_params(method, ["mask_lambda=0.3"]), 1, 3).params["mask_lambda"] == 0.3
    assert point_of(method, read_params(method, ["mask_lambda=0.3, 0.5,1"]), 1, 3).params["mask_lambda"] == (
        0.3,
        0.5,
        1.0,
    )
    complaint = "parameter 'mask_lambda' of method 'consensus-ta' is (0.3, 0.5), expected one number, or one for each "
    assert refused("consensus-ta", ["mask_lambda=0.3,0.5"]).startswith(complaint + "of the 3 experts.")
    assert "is (0.3, 0.5, 2.0), expected 0 to 1." in refused("consensus-ta", ["mask_lambda=0.3,0.5,2"])
    assert "expected a number." in refused("ties", ["keep=0.3,0.5"]), "other parameters have one value"


def test_numbers_of_numpy():
    point = point_of(merging_method("iso-cts"), {"common_space_fraction": np.float32(0.5)}, np.float64(2.0), 3)
    assert (point.params, point.alpha) == ({"common_space_fraction": 0.5}, 2.0)
    assert type(point.alpha) is type(point.params["common_space_fraction"]) is float


@pytest.mark.parametrize(
    ("name", "texts", "message"),
    [
        ("iso-cts", ["common_fraction=0.5"], "no parameter 'common_fraction'. Did you mean 'common_space_fraction'?"),
        ("iso-c", ["keep=0.5"], "method 'iso-c' has no parameter 'keep'. It has none."),
        ("ties", ["keep=1.5"], "parameter 'keep' of method 'ties' is 1.5, expected 0.0001 to 1."),
        ("ties", ["keep=0"], "is 0.0, expected 0.0001 to 1."),
        ("ties", ["keep=nan"], "is nan, expected 0.0001 to 1."),
        ("ties", ["keep=-inf"], "is -inf, expected 0.0001 to 1."),
        ("ties", ["keep=much"], "is 'much', expected a number."),
        ("ties", ["keep"], "'keep' is not a parameter and its value, expected NAME=VALUE such as keep=0.2."),
        ("ties", ["keep="], "'keep=' is not a parameter and its value"),
        ("ties", ["=1"], "'=1' is not a parameter and its value"),
        ("ties", ["keep=0.1", "keep=0.2"], "parameter 'keep' is given twice"),
        ("scale-svd", ["prune_level=rows"], "'prune_level' of method 'scale-svd' is 'rows', expected one of row, elem"),
        ("scale-svd", ["num_iters=0"], "is 0.0, expected 1 to 1000."),
    ],
)
def test_mistakes_in_parameters(name, texts, message):
    assert message in refused(name, texts)


@pytest.mark.parametrize("value", [True, None, torch.tensor(0.5), [0.5], "0.5"])
def test_values_that_are_no_numbers(value):
    with pytest.raises(UsageError, match="expected a number"):
        point_of(merging_method("ties"), {"keep": value}, 1.0, 3)


def test_alpha():
    assert refused("iso-c", [], None) == (
        "method 'iso-c' needs an alpha: a sweep would look for it between 0.1 and 3. Give --alpha, or alpha= in Python."
    )
    for alpha in (float("nan"), float("-inf"), 1e39, "1", True):
        assert "expected a number from -1e+30 to 1e+30." in refused("iso-c", [], alpha)
    assert refused("weight-averaging", [], 0.3) == (
        "method 'weight-averaging' has a fixed alpha of 1/T; leave alpha out."
    )
    assert point_of(merging_method("iso-c"), {}, -1, 3).alpha == -1.0, "forgetting is merging too"


def test_alpha_of_an_update():
    assert point_of(merging_method("iso-c"), {}, None, 3, update_only=True) == MethodPoint("iso-c", {}, None, True)
    assert point_of(merging_method("iso-c"), {}, 2, 3, update_only=True).alpha == 2.0
    assert "has a fixed alpha" in refused("weight-averaging", [], 0.3, update_only=True)
    assert "expected a number from -1e+30 to 1e+30." in refused("iso-c", [], float("nan"), update_only=True)


def test_methods():
    assert [name for name in METHODS if name not in MERGING] == ["zero-shot", "fine-tuned", "single-task-iso-c"]
    with pytest.raises(UsageError, match="method 'single-task-iso-c' is a model per task, and merges nothing"):
        merging_method("single-task-iso-c")
    for name in ("zero-shot", "fine-tuned"):
        with pytest.raises(UsageError, match=f"method '{name}' is a reference that merged models are compared with"):
            merging_method(name)
    with pytest.raises(UsageError, match=r"unknown method 'iso_c'. Did you mean 'iso-c'\? Known: .*iso-cts"):
        merging_method("iso_c")
    assert merging_method("ties") is declared_methods()["ties"]
