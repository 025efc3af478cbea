"""What the search of a cell may try, and which cells a sweep has."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.errors import SweepFileError
from raymerge.method_settings import Linspace
from raymerge.methods import declared_methods
from raymerge.methods._method import Alpha, AlphaGrid, FixedAlpha, Interval, Method, Parameter
from raymerge.search_space import Dimension, grid_values, search_space, sweep_cells
from raymerge.sweep_file import load_sweep
from raymerge.sweep_spec import SweepSpec, spec_hash

DEMO = Path(__file__).parent.parent / "sweeps" / "demo.yaml"
TENTHS = tuple(i / 10 for i in range(1, 31))


def declared(name: str = "fake", alpha: Alpha | FixedAlpha | None = None, *parameters: Parameter) -> Method:
    alpha = alpha or Alpha(search=Interval(0.5, 2.0, 0.5), paper=AlphaGrid(3.0, 30))
    return Method(name=name, title=name, source="none", alpha=alpha, parameters=parameters)


@pytest.fixture
def fake_methods(monkeypatch: pytest.MonkeyPatch) -> dict[str, Method]:
    """Methods whose declarations do not change when the real ones do."""
    methods = {
        "fixed": declared("fixed", FixedAlpha("1/T")),
        "smooth": declared("smooth", Alpha(search=Interval(0.0, 1.0), paper=AlphaGrid(1.0, 4))),
        "shaped": declared(
            "shaped",
            None,
            Parameter("fraction", default=0.8, search=Interval(0.2, 0.8, 0.3), low=0.1, high=0.9),
            Parameter("threshold", default=2.0, high=10.0),
            Parameter("own", default=0.4, per_task=(0.4, 0.2)),
        ),
    }
    for module in ("raymerge.method_settings", "raymerge.sweep_spec"):
        monkeypatch.setattr(f"{module}.declared_methods", lambda: methods)
    return methods


def fake_spec(methods: Any, policy: str = "tpe") -> SweepSpec:
    return SweepSpec.model_validate(
        {"name": "x", "suite": "demo", "num_tasks": [8], "methods": methods, "search": {"policy": policy}}
    )


def test_grid_values_are_the_published_floats():
    assert grid_values(Interval(0.1, 3.0, 0.1)) == TENTHS == AlphaGrid(3.0, 30).values()
    assert grid_values(Interval(1 / 30, 1.0, 1 / 30)) == AlphaGrid(1.0, 30).values()
    assert grid_values(Interval(0.0, 1.0, 0.1))[3] == 0.3  # 3 * 0.1 would be 0.30000000000000004


def test_every_declared_paper_grid_is_its_linspace():
    for method in declared_methods().values():
        if isinstance(method.alpha, Alpha):
            paper = method.alpha.paper
            assert Linspace(stop=paper.stop, num=paper.num).values() == paper.values()


def test_range_ends_at_its_last_step():
    assert grid_values(Interval(0.1, 1.0, 0.4)) == (0.1, 0.5, 0.9)
    assert grid_values(Interval(0.5, 0.5, 0.1)) == (0.5,)
    assert grid_values(Interval(0.5, 0.6, 0.2)) == (0.5,)


@given(
    start=st.integers(-50, 50), step=st.integers(1, 30), num=st.integers(0, 60), scale=st.sampled_from([10, 100, 30])
)
def test_grid_points_are_correctly_rounded(start, step, num, scale):
    interval = Interval(start / scale, (start + num * step) / scale, step / scale)
    assert grid_values(interval) == tuple((start + i * step) / scale for i in range(num + 1))


def test_linspace_by_hand():
    assert Linspace(start=0.0, stop=1.0, num=4).values() == (0.25, 0.5, 0.75, 1.0)  # 0 is left out
    assert Linspace(stop=1.0, num=1).values() == (1.0,)
    assert Linspace(start=0.5, stop=1.5, num=5).values() == (0.5, 0.75, 1.0, 1.25, 1.5)  # both ends


def test_space_of_declared_defaults(fake_methods):
    space = search_space(fake_spec({"shaped": {}}), fake_methods["shaped"], 8)
    assert space.alpha.grid() == (0.5, 1.0, 1.5, 2.0)
    assert {name: dimension.grid() for name, dimension in space.params.items()} == {"fraction": (0.2, 0.5, 0.8)}
    assert space.fixed == {"threshold": 2.0}
    assert space.per_task is not None
    assert space.per_task.grid() == (0.2, 0.4)
    assert (space.num_points, space.num_merges) == (12, 3)


def test_space_of_given_settings(fake_methods):
    given = {"alpha": [2, 1], "fraction": 0.3, "threshold": [3, 1], "own": 0.5}
    space = search_space(fake_spec({"shaped": given}), fake_methods["shaped"], 8)
    assert space.alpha.grid() == (1.0, 2.0)
    assert space.params["threshold"].grid() == (1.0, 3.0)
    assert space.fixed == {"fraction": 0.3, "own": 0.5}
    assert space.per_task is None
    assert space.num_points == 4


def test_fixed_alpha_is_a_space_of_one_point(fake_methods):
    space = search_space(fake_spec({"fixed": {}}), fake_methods["fixed"], 8)
    assert (space.alpha.grid(), space.num_points) == ((0.125,), 1)
    assert search_space(fake_spec({"fixed": {}}), fake_methods["fixed"], 20).alpha.grid() == (0.05,)


def test_a_method_outside_the_sweep_has_its_declared_space(fake_methods):
    spec = fake_spec({"fixed": {}})
    assert search_space(spec, fake_methods["shaped"], 8).num_points == 12


def test_continuous_space(fake_methods):
    space = search_space(fake_spec({"smooth": {}}), fake_methods["smooth"], 8)
    assert space.alpha.is_continuous
    assert space.num_points == float("inf")
    assert space.num_merges == 1
    assert [space.alpha.at(f) for f in (0.0, 0.25)] == [0.0, 0.25]
    assert [space.alpha.snap(x) for x in (-1.0, 0.123, 2.0)] == [0.0, 0.123, 1.0]


def test_paper_policy_is_the_published_protocol():
    spec = load_sweep(DEMO, ["search.policy=paper"])
    space = search_space(spec, declared_methods()["iso-cts"], 20)
    assert space.alpha.grid() == TENTHS
    assert space.params == {}
    assert space.fixed == {"common_space_fraction": 0.8}
    assert spec.search.patience == 3
    assert search_space(spec, declared_methods()["task-arithmetic"], 8).alpha.grid() == AlphaGrid(1.0, 30).values()


def test_paper_policy_refuses_to_search_parameters(fake_methods):
    with pytest.raises(ValueError, match="is searched, but policy paper searches alpha alone"):
        fake_spec({"shaped": {"fraction": [0.2, 0.4]}}, "paper")
    fake_spec({"shaped": {"fraction": 0.2, "own": [0.1, 0.2], "alpha": [1, 2]}}, "paper")


def test_only_tpe_takes_a_range_without_step(fake_methods):
    assert fake_spec({"shaped": {"alpha": {"low": 0, "high": 1}}}).methods
    for policy in ("grid", "paper"):
        with pytest.raises(ValueError, match=r"'methods\.shaped\.alpha' has no step"):
            fake_spec({"shaped": {"alpha": {"low": 0, "high": 1}}}, policy)
    with pytest.raises(ValueError, match=r"'methods\.shaped\.own' has no step"):
        fake_spec({"shaped": {"own": {"low": 0, "high": 1}}})


def test_grid_policy_falls_back_to_the_paper_grid(fake_methods):
    space = search_space(fake_spec({"smooth": {}}, "grid"), fake_methods["smooth"], 8)
    assert space.alpha.grid() == (0.25, 0.5, 0.75, 1.0)


def test_dimension_snaps_and_spreads():
    dimension = Dimension("alpha", 0.1, 0.5, 0.2)
    assert [dimension.snap(x) for x in (-1.0, 0.19, 0.21, 0.31, 9.0)] == [0.1, 0.1, 0.3, 0.3, 0.5]
    assert [dimension.at(f) for f in (0.0, 0.34, 0.67, 0.999999)] == [0.1, 0.3, 0.5, 0.5]
    assert Dimension("x", 1.0, 9.0, values=(1.0, 9.0)).snap(4.9) == 1.0


def test_hash_sees_a_changed_declaration(fake_methods):
    before = spec_hash(fake_spec({"shaped": {}}))
    fake_methods["shaped"] = declared("shaped", Alpha(search=Interval(0.5, 2.5, 0.5), paper=AlphaGrid(3.0, 30)))
    assert spec_hash(fake_spec({"shaped": {}})) != before


TASKS = [f"task{i}" for i in range(1, 21)]


def spec_of(**fields: Any) -> SweepSpec:
    return SweepSpec.model_validate({"name": "x", "suite": "demo", "methods": ["ties"], **fields})


def test_cells_nest_and_keep_the_order_of_the_file():
    spec = spec_of(num_tasks=[8, 2], methods=["ties", "iso-c"], backbones=["b", "a"])
    cells = sweep_cells(spec, ["a", "b", "c"], TASKS)
    assert [(c.backbone, c.num_tasks, c.method) for c in cells] == [
        (backbone, size, method) for backbone in "ba" for size in (8, 2) for method in ("ties", "iso-c")
    ]
    assert cells[0].tasks == tuple(TASKS[:8])


def test_all_backbones_and_named_tasks():
    spec = spec_of(tasks=["task7", "task2"])
    assert [(c.backbone, c.tasks) for c in sweep_cells(spec, ["a", "b"], TASKS)] == [
        ("a", ("task7", "task2")),
        ("b", ("task7", "task2")),
    ]


def test_cells_the_suite_lacks():
    spec = spec_of(num_tasks=[8, 21], backbones=["ViT-B-33"])
    with pytest.raises(SweepFileError) as caught:
        sweep_cells(spec, ["ViT-B-32"], TASKS)
    assert str(caught.value).splitlines() == [
        "sweep 'x': suite 'demo' has no backbone 'ViT-B-33'. Did you mean 'ViT-B-32'? Known: ViT-B-32.",
        "sweep 'x': suite 'demo' has 20 tasks, 'num_tasks' asks for 21; ask for at most 20.",
    ]
    spec = spec_of(tasks=["task21"])
    with pytest.raises(SweepFileError, match=r"suite 'demo' has no task 'task21'\. Did you mean 'task2"):
        sweep_cells(spec, ["ViT-B-32"], TASKS)
