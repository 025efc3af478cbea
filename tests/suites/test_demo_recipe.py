"""The numbers of the demo suite: what its address depends on, and how its tasks are declared."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import raymerge
from raymerge.errors import SuiteError
from raymerge.suites.demo import recipe as recipe_module
from raymerge.suites.demo.concepts import COLOURS, CONCEPTS, FAMILIES, FLAGS, caption
from raymerge.suites.demo.recipe import (
    TASK_NAMES,
    TASKS,
    VARIANTS,
    DemoRecipe,
    content_address,
    demo_task,
    describe,
    make_recipe,
    stream_seed,
)
from raymerge.suites.demo.styles import WEB

NUMBERS = [f.name for f in dataclasses.fields(DemoRecipe) if f.name != "variant"]


@pytest.mark.parametrize("field", NUMBERS)
def test_the_address_depends_on_every_number(field):
    recipe = make_recipe()
    changed = dataclasses.replace(recipe, **{field: getattr(recipe, field) * 2 + 1})
    assert content_address(changed) != content_address(recipe)


def test_the_address_is_the_same_for_equal_recipes():
    assert content_address(make_recipe("full", 3)) == content_address(DemoRecipe(seed=3))
    assert content_address(make_recipe("reduced")) != content_address(make_recipe("full"))


def test_the_address_depends_on_the_source_and_on_nothing_else_in_the_folder(tmp_path, monkeypatch):
    folder = tmp_path / "demo"
    shutil.copytree(Path(recipe_module.__file__).parent, folder)
    monkeypatch.setattr(recipe_module, "__file__", str(folder / "recipe.py"))
    copied = content_address(make_recipe())
    monkeypatch.undo()
    assert copied == content_address(make_recipe()), "where the package lies does not matter"

    monkeypatch.setattr(recipe_module, "__file__", str(folder / "recipe.py"))
    (folder / "notes.txt").write_text("not source")
    assert content_address(make_recipe()) == copied
    glyphs = folder / "glyphs.py"
    glyphs.write_text(glyphs.read_text().replace("01 10 30 41 42 06 46", "01 10 30 41 43 06 46"))
    assert content_address(make_recipe()) != copied


def test_the_address_depends_on_the_training_loop(tmp_path, monkeypatch):
    source = Path(raymerge.__file__).parent / "training.py"
    monkeypatch.setattr(raymerge, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "training.py").write_bytes(source.read_bytes())
    copied = content_address(make_recipe())
    (tmp_path / "training.py").write_text(source.read_text().replace("math.pi", "math.tau"))
    changed = content_address(make_recipe())
    monkeypatch.undo()
    assert copied == content_address(make_recipe()) != changed


def test_there_are_twenty_different_tasks_with_classes_of_one_family():
    assert len(TASKS) == 20
    assert len(set(TASK_NAMES)) == 20
    assert len({(task.family, task.classes, task.style) for task in TASKS}) == 20
    for task in TASKS:
        assert len(task.classes) >= 4
        first = FAMILIES[task.family].classes.index(task.classes[0])
        assert FAMILIES[task.family].classes[first : first + len(task.classes)] == task.classes
        assert task.style != WEB, "a task without a shift leaves nothing to learn"
        assert task.name.isalnum()
        assert task.name[0].isupper()


def test_an_unknown_task_is_named():
    with pytest.raises(SuiteError, match="no task 'Shape'"):
        demo_task("Shape")


def test_streams_differ_and_do_not_depend_on_the_other_tasks():
    recipe = make_recipe()
    streams = [(name, split) for name in TASK_NAMES for split in ("train", "val", "test", "fine-tuning")]
    seeds = {stream_seed(make_recipe(seed=seed), *path) for seed in (0, 1) for path in streams}
    assert len(seeds) == 2 * len(streams)
    assert stream_seed(recipe, "Shapes", "val") == 816069659, "a changed seed changes every published figure"


def test_the_description_is_what_suite_json_holds():
    described = describe(VARIANTS["reduced"])
    assert described["profile"] == "reduced"
    assert described["backbones"]["demo-vit"]["zero_shot"] == f"demo-vit/{TASK_NAMES[0]}Val/nonlinear_zeroshot.pt"
    assert [task["name"] for task in described["tasks"]] == list(TASK_NAMES)
    assert described["tasks"][0]["images"] == {"val": VARIANTS["reduced"].val_images, "test": 40}


def test_captions_name_the_class():
    assert caption("digit", "three", "a photo of {}") == "a photo of the digit three"
    assert caption("count", "three", "{}") == "three spots"
    assert len(set(CONCEPTS)) == len(CONCEPTS) == sum(len(family.classes) for family in FAMILIES.values())
    assert len({caption(*concept, "{}") for concept in CONCEPTS}) == len(CONCEPTS), "two classes of one caption"


def test_flags_are_made_of_known_colours_and_differ():
    assert len(set(FLAGS.values())) == len(FLAGS)
    assert {colour for _, colours in FLAGS.values() for colour in colours} <= set(COLOURS)


def test_reading_the_recipe_needs_no_torch():
    code = "import sys, raymerge.suites.demo.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
