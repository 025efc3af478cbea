"""Suite files: what they may say, what is said of mistakes, and which suite a name stands for."""

import re
from pathlib import Path

import pytest
from own_suite import MODEL, NAME, own_suite, suite_file
from PIL import Image
from raw_images import drawn
from tiny_suite import tiny_suite

from raymerge.data import dataset
from raymerge.data.splits import read_split
from raymerge.errors import DataError, SuiteError
from raymerge.suite_file import find_suite, load_suite_file
from raymerge.suites.published import Files, PublishedSuite

ROOT = Path(__file__).parent.parent
PLAIN = """\
name: mine
backbones:
  ViT-B-32: {model: ViT-B-32, pretrained: openai}
tasks: [MNIST, SVHN]
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def load(text: str) -> PublishedSuite:
    Path("x.yaml").write_text(text)
    return load_suite_file("x.yaml")


def problem(text: str) -> str:
    with pytest.raises(SuiteError) as caught:
        load(text)
    return str(caught.value)


# --- what a file says -----------------------------------------------------------------------------------------------


def test_a_plain_file(tmp_path):
    suite = load(PLAIN)
    assert (suite.name, suite.profile, suite.seed, suite.image_size) == ("mine", "file", 0, 224)
    assert (suite.root, suite.data) == (tmp_path / "weights", tmp_path / "data")
    backbone = suite.backbones["ViT-B-32"]
    assert (backbone.model, backbone.pretrained, backbone.quick_gelu) == ("ViT-B-32", "openai", True)
    assert backbone.mean == (0.48145466, 0.4578275, 0.40821073)
    assert [task.name for task in suite.tasks] == ["MNIST", "SVHN"]
    assert suite.task("MNIST").classes == dataset("MNIST").classes
    assert suite.task("MNIST").templates == dataset("MNIST").templates
    assert dict(suite.task("SVHN").images) == {"val": 5000, "test": 26032}
    assert suite.files == Files()
    assert suite.argument == "x.yaml"


def test_the_example_is_right(tmp_path):
    """examples/my_suite.yaml says what its comments say; images of its own need not be there yet."""
    suite = load_suite_file(ROOT / "examples" / "my_suite.yaml")
    assert suite.files == Files(), "the published names, as it says"
    assert suite.root == ROOT / "examples" / "my_weights"
    assert [task.name for task in suite.tasks] == ["MNIST", "EuroSAT", "Letters", "Flowers"]
    assert suite.task("EuroSAT").templates == ("a satellite photo of {}.", "an aerial view of {}.")
    assert len(suite.task("EuroSAT").classes) == 10
    assert len(suite.task("Letters").classes) == 26
    assert suite.task("Flowers").classes == ("daisy", "tulip", "water lily")
    text = (ROOT / "examples" / "my_suite.yaml").read_text()
    everything = re.sub(
        r"^  # ( *(?:small|model|embed_dim|vision_cfg|text_cfg|pretrained):)", r"  \1", text, flags=re.M
    )
    everything = re.sub(r"^    # (quick_gelu|mean|std)", r"    \1", everything, flags=re.M)
    (tmp_path / "all.yaml").write_text(everything)
    assert set(load_suite_file(tmp_path / "all.yaml").backbones) == {"ViT-B-32", "small"}, "so is what is commented out"


@pytest.mark.parametrize(
    ("section", "quick_gelu"),
    [
        ("{model: ViT-B-16, pretrained: openai}", True),
        ("{model: ViT-B-16}", False),
        ("{model: ViT-B-16, quick_gelu: true}", True),
        ("{model: ViT-B-16-quickgelu}", True),
        ("{model: ViT-B-32-quickgelu, pretrained: laion400m_e32}", True),
        ("{model: ViT-B-16, pretrained: laion2b_s34b_b88k}", False),
        ("{model: {embed_dim: 8, vision_cfg: {layers: 1}, quick_gelu: true}}", True),
        ("{model: {embed_dim: 8, vision_cfg: {layers: 1}}}", False),
    ],
)
def test_which_activation(section, quick_gelu):
    backbone = load(PLAIN.replace("{model: ViT-B-32, pretrained: openai}", section)).backbones["ViT-B-32"]
    assert backbone.quick_gelu == quick_gelu


def test_folders_and_weights_are_relative_to_the_file_and_options_win(tmp_path):
    folder = tmp_path / "deep"
    path = suite_file(folder, weights="../w", data=str(tmp_path / "d"), backbone={"pretrained": "towers/clip.pt"})
    suite = load_suite_file(path)
    assert (suite.root, suite.data) == (tmp_path / "w", tmp_path / "d")
    assert suite.backbones[NAME].pretrained == str(folder / "towers" / "clip.pt")
    assert suite.argument == str(path)
    other = find_suite(str(path), weights="elsewhere")
    assert isinstance(other, PublishedSuite)
    assert (other.root, other.data) == (tmp_path / "elsewhere", tmp_path / "d")
    assert other.argument == f"{path} --weights {tmp_path / 'elsewhere'}"


def test_names_of_files(tmp_path):
    names = {
        "zero_shot": "base",
        "expert": ["{task}/{backbone}.pt", "{task}/model.safetensors"],
        "head": "h/{task}.bin",
    }
    suite = own_suite(tmp_path, files=names)
    assert suite.files == Files(("base",), ("{task}/{backbone}", "{task}/model"), ("h/{task}",)), "without suffix"
    assert suite.expert_path(NAME, "SVHN") == suite.root / "SVHN" / f"{NAME}.pt"
    (suite.root / "SVHN").mkdir(parents=True)
    (suite.root / "SVHN" / "model.safetensors").touch()
    assert suite.expert_path(NAME, "SVHN") == suite.root / "SVHN" / "model.safetensors"


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: mine\n", "", "x.yaml: 'name' is missing."),
        ("name: mine", "name: my suite", "x.yaml:1: 'name' is 'my suite', String should match pattern"),
        ("tasks: [MNIST, SVHN]", "tasks: []", "x.yaml:4: 'tasks' is "),
        ("tasks: [MNIST, SVHN]", "taks: [MNIST]", "x.yaml:4: unknown key 'taks'. Did you mean 'tasks'?"),
        ("[MNIST, SVHN]", "[MNIST, MNIST]", "task 'MNIST' stands there twice."),
        ("[MNIST, SVHN]", "[MNIST, MNSIT]", "x.yaml:4: task 'MNSIT': no dataset 'MNSIT' is known;"),
        ("[MNIST, SVHN]", "\n- MNIST\n- {name: A, dataset: SVNH}", "x.yaml:6: task 'A': no dataset 'SVNH' is known"),
        ("[MNIST, SVHN]", "\n- {name: A, dataset: MNIST, folder: a}", "'dataset' and 'folder' exclude each other."),
        (
            "[MNIST, SVHN]",
            "\n- {name: MNIST, classes: [a, b]}",
            "x.yaml:5: task 'MNIST' names 2 classes, MNIST has 10;",
        ),
        ("[MNIST, SVHN]", "\n- {name: MNIST, templates: [a photo]}", "the template 'a photo' should hold {} once."),
        ("[MNIST, SVHN]", "\n- {name: MNIST, template: a}", "x.yaml:5: unknown key 'tasks.0.template'. Did you mean"),
        ("[MNIST, SVHN]", "\n- {name: ../MNIST}", "x.yaml:5: 'tasks.0.name' is '../MNIST', String should match"),
        (
            "{model: ViT-B-32",
            "{model: ViT-B32",
            "x.yaml:3: backbone 'ViT-B-32': open_clip has no model 'ViT-B32'. Did you",
        ),
        (
            "{model: ViT-B-32",
            "{modle: ViT-B-32",
            "x.yaml:3: unknown key 'backbones.ViT-B-32.modle'. Did you mean 'model'",
        ),
        (
            "model: ViT-B-32, ",
            "model: {embed_dim: 3}, ",
            "x.yaml:3: backbone 'ViT-B-32': its model lacks 'vision_cfg';",
        ),
        ("pretrained: openai", "quick_gelu: 3", "x.yaml:3: 'backbones.ViT-B-32.quick_gelu' is 3"),
        (
            "{model: ViT-B-32, pretrained: openai}",
            "{model: ViT-B-32-quickgelu, quick_gelu: false}",
            "x.yaml:3: backbone 'ViT-B-32': its model has QuickGELU, but 'quick_gelu' is false; leave it out.",
        ),
        ("tasks:", "files: {expert: '{task}/{name}'}\ntasks:", "'{task}/{name}' has a placeholder {name}, expected"),
        ("tasks:", "files: {expert: '{task}/{'}\ntasks:", "'{task}/{' is no name of files"),
        ("tasks:", "files: {head: '/etc/{task}'}\ntasks:", "x.yaml:4: 'files.head.0' is"),
        ("tasks:", "files: {head: '../{task}'}\ntasks:", "'../{task}' should be a path below the weights."),
        ("tasks:", "files: {head: []}\ntasks:", "x.yaml:4: 'files.head' is"),
        (
            "tasks:",
            "files: {expert: '{backbone}/model'}\ntasks:",
            "'files.expert' '{backbone}/model' is one file for every",
        ),
        ("  ViT-B-32:", "  B: {model: ViT-L-14}\n  ViT-B-32:", None),
        ("  ViT-B-32:", "  B: {model: ViT-L-14-336}\n  ViT-B-32:", "x.yaml:2: the backbones take images of different"),
        ("name: mine", "name: [", "x.yaml:3: is not valid YAML"),
        ("name: mine", "suite_version: 2\nname: mine", "x.yaml:1: 'suite_version' is 2. Known: 1."),
    ],
)
def test_mistakes_are_told_with_file_and_line(old, new, expected):
    assert old in PLAIN
    text = PLAIN.replace(old, new, 1)
    if expected is None:
        assert set(load(text).backbones) == {"B", "ViT-B-32"}
    else:
        assert expected in problem(text)


def test_one_file_for_every_backbone_is_a_mistake():
    text = PLAIN.replace("  ViT-B-32:", "  B: {model: ViT-L-14}\n  ViT-B-32:")
    assert "'files' has 'base', one file for every backbone" in problem(text + "files: {zero_shot: base}\n")


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file():
    text = PLAIN.replace("[MNIST, SVHN]", "[MNSIT, SVHN, KMNSIT]").replace("model: ViT-B-32", "model: RN50")
    lines = problem(text).splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["x.yaml:3:", "x.yaml:4:", "x.yaml:4:"]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("RN50", "RN50 is a ResNet, whose running statistics are no parameters"),
        ("RN101-quickgelu", "RN101-quickgelu is a ResNet"),
        ("convnext_base", "convnext_base takes its image tower from timm"),
        ("ViT-B-16-SigLIP", "ViT-B-16-SigLIP takes its image tower from timm"),
        ("EVA02-B-16", "EVA02-B-16 takes its image tower from timm"),
        ("coca_ViT-B-32", "coca_ViT-B-32 gives tokens beside its features, as CoCa does"),
        (
            "{embed_dim: 8, vision_cfg: {image_size: [224, 196]}}",
            "its model takes images of 224 x 196 pixels, expected a",
        ),
        ("{embed_dim: 8, vision_cfg: 3}", "its model has int as vision_cfg, expected a mapping"),
    ],
)
def test_models_that_are_not_read(model, why):
    found = problem(PLAIN.replace("model: ViT-B-32, pretrained: openai", f"model: {model}"))
    assert found.startswith(f"x.yaml:3: backbone 'ViT-B-32': {why}")


@pytest.mark.parametrize("model", ["ViT-B-32", "ViT-B-16-quickgelu", "ViT-H-14", "ViT-L-14-CLIPA", "roberta-ViT-B-32"])
def test_models_that_are_read(model):
    assert load(PLAIN.replace("model: ViT-B-32, pretrained: openai", f"model: {model}")).image_size == 224


def test_a_file_that_is_not_there():
    with pytest.raises(SuiteError, match=r"none\.yaml: no such file; give the path of a suite file"):
        load_suite_file("none.yaml")


# --- images of one's own --------------------------------------------------------------------------------------------


def write_images(folder: Path, split: str, classes: list[str], count: int = 3) -> None:
    for name in classes:
        (folder / split / name).mkdir(parents=True)
        for number, (image, _) in enumerate(drawn(1, count, size=(8, 6))):
            image.save(folder / split / name / f"{number}.png")


def test_images_of_ones_own(tmp_path):
    folder = tmp_path / "data" / "pets" / "mine"
    write_images(folder, "train", ["cat", "big_dog"], 20)
    write_images(folder, "test", ["cat", "big_dog"])
    suite = own_suite(tmp_path, [{"name": "Pets", "folder": "pets/mine"}])
    task, declared = suite.task("Pets"), suite.datasets["Pets"]
    assert task.classes == ("big dog", "cat"), "in the order of their folders"
    assert task.templates == ("a photo of a {}.",)
    assert declared.name == "folder-pets%2Fmine"
    assert suite.image_cache("Pets").parent.parent == suite.images_folder
    assert len(read_split(declared, suite.data, "val")) == 4, "a tenth of 40"
    assert len(read_split(declared, suite.data, "train")) == 36
    test = read_split(declared, suite.data, "test")
    assert list(test.labels) == [0, 0, 0, 1, 1, 1]
    assert isinstance(test.image(0), Image.Image)


def test_a_validation_folder_of_ones_own_is_taken(tmp_path):
    folder = tmp_path / "data" / "mine"
    for split, count in (("train", 20), ("val", 2), ("test", 3)):
        write_images(folder, split, ["a", "b"], count)
    suite = own_suite(tmp_path, [{"name": "Mine", "folder": "mine", "classes": ["A", "B"]}])
    sizes = {split: len(read_split(suite.datasets["Mine"], suite.data, split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 40, "val": 4, "test": 6}
    assert suite.task("Mine").classes == ("A", "B")


def test_folders_that_are_not_alike_are_refused(tmp_path):
    folder = tmp_path / "data" / "mine"
    write_images(folder, "train", ["a", "c"])
    write_images(folder, "test", ["a", "b"])
    suite = own_suite(tmp_path, [{"name": "Mine", "folder": "mine"}])
    with pytest.raises(DataError, match=r"train: lacks class folder 'b'"):
        read_split(suite.datasets["Mine"], suite.data, "train")
    suite = own_suite(tmp_path, [{"name": "Mine", "folder": "mine", "classes": ["a", "b", "c"]}])
    with pytest.raises(DataError, match=r"test: holds 2 class folders, the suite has 3 classes"):
        read_split(suite.datasets["Mine"], suite.data, "test")


def test_images_that_are_not_there_yet(tmp_path):
    suite = own_suite(tmp_path, ["MNIST", {"name": "Mine", "folder": "mine"}])
    assert suite.task("Mine").classes == ()
    (tmp_path / "data" / "mine").mkdir(parents=True)
    with pytest.raises(SuiteError, match=r"suite\.yaml:\d+: .*test: cannot be listed \(No such file or directory\)"):
        own_suite(tmp_path, ["MNIST", {"name": "Mine", "folder": "mine"}])


# --- which suite a name stands for ----------------------------------------------------------------------------------


def test_names_of_suites(tmp_path):
    assert find_suite("tall-masks").argument == "tall-masks --profile paper-legacy"
    assert find_suite("fusionbench").name == "fusionbench"
    assert find_suite("demo", "reduced", 3).argument == "demo --profile reduced --suite-seed 3"
    tiny_suite(tmp_path / "tiny", num_tasks=1, images=2)
    assert find_suite(str(tmp_path / "tiny")).root == tmp_path / "tiny"
    assert find_suite("tiny").name == "tiny"
    Path("x.yaml").write_text(PLAIN)
    assert find_suite("x.yaml", "file").name == "mine"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("tal-masks",), "unknown suite 'tal-masks'. Did you mean 'tall-masks'?"),
        (("tall-masks", "corect"), "suite 'tall-masks' has no profile 'corect'. Did you mean 'corrected'?"),
        (("fusionbench", "corrected"), "suite 'fusionbench' has no profile 'corrected'. Known: hub."),
        (("x.yaml", "corrected"), "suite 'mine' has no profile 'corrected'. Known: file."),
        (("some/where",), "suite.json: cannot be read (No such file or directory)"),
    ],
)
def test_names_that_stand_for_nothing(arguments, expected):
    Path("x.yaml").write_text(PLAIN)
    with pytest.raises(SuiteError) as caught:
        find_suite(*arguments)
    assert expected in str(caught.value)


def test_the_demo_has_its_files_in_its_own_folder():
    with pytest.raises(SuiteError, match="suite 'demo' has its weights in its own folder; leave 'weights' out"):
        find_suite("demo", weights="x")


def test_a_model_that_is_written_out():
    suite = load(PLAIN.replace("model: ViT-B-32, pretrained: openai", f"model: {MODEL!r}"))
    assert suite.backbones["ViT-B-32"].model == MODEL
    assert suite.image_size == 32
