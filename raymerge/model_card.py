"""The model card of a merged model: README.md beside it, with the front matter that the Hugging Face Hub reads."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from raymerge.checkpoints import PREFIX
from raymerge.merge_model import Written, file_name
from raymerge.methods import METHODS
from raymerge.whole_file import whole_file

CARD = "README.md"


def find_card(model: Path) -> Path | None:
    """Where the card of a model goes: README.md, or <model>.README.md where that is another's; None if both are.

    A card is ours to replace while it is as it was written for this very file.
    """
    for path in (model.parent / CARD, model.with_name(f"{model.stem}.{CARD}")):
        if not os.path.lexists(path) or _is_own(path, model.name):
            return path
    return None


def write_card(path: Path, written: Written, *, source: str) -> None:
    """Write the card of a model that is in place.

    Args:
        source: what the models are of, such as a backbone or the name of the base model's file.
    Raises:
        OSError: it cannot be written.
    """
    text = card_text(written, source=source)
    with whole_file(path) as file:
        file.write((text + _seal(text, written.path.name)).encode())


def card_text(written: Written, *, source: str) -> str:
    """The card, but for its last line. Follows from the model file alone."""
    metadata = written.metadata
    method = METHODS.declaration(metadata["method"])
    experts = json.loads(metadata["experts"])
    update_only = json.loads(metadata["update_only"])
    alpha = metadata.get("alpha")
    lines = [
        "---",
        f"base_model: {_quoted(source)}",
        "library_name: open_clip",
        "tags:",
        *(f"- {tag}" for tag in ("merge", "model-merging", "raymerge", method.name)),
        "---",
        "",
        f"# {_escaped(file_name(written.path).removesuffix(written.path.suffix))}",
        "",
        f"{method.title} ({_link(method.source)}) of {len(experts)} experts of {_escaped(source)}, merged with "
        f"raymerge {metadata['raymerge_version']}. "
        + (
            "The file holds the update u of the merged model theta_0 + alpha u, in float32."
            if update_only
            else f"The file holds theta_0 + {alpha} u, in the dtypes of the base model; theta_0 is the base model, u "
            "the update that the method gives."
        ),
        "",
        "| | |",
        "|---|---|",
        f"| File | {_escaped(file_name(written.path))}, {written.num_bytes:,} bytes, SHA-256 `{written.sha256}` |",
        f"| Method | `{method.name}` |",
        *(f"| `{key}` | {_escaped(shown(value))} |" for key, value in json.loads(metadata["parameters"]).items()),
        *([f"| `alpha` | {alpha} |"] if alpha is not None else []),
        f"| Tensors | {written.num_changed} merged, {written.num_unchanged} as in the base model |",
        "",
        "| Model | File | SHA-256 |",
        "|---|---|---|",
        _row("base model", json.loads(metadata["base"])),
        *(_row(expert["name"], expert) for expert in experts),
        "",
    ]
    if "moments" in metadata:
        lines += ["| Input moments of | File | SHA-256 |", "|---|---|---|"]
        lines += [*(_row(entry["name"], entry) for entry in json.loads(metadata["moments"])), ""]
    lines += ["## Loading it", "", *_loading(written, update_only), ""]
    notes = json.loads(metadata["notes"])
    if notes:
        lines += ["## Notes of the merge", "", *(f"- {_escaped(note)}" for note in notes), ""]
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    """The value of a parameter, as `--param` takes it."""
    if isinstance(value, list | tuple):
        return ",".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _loading(written: Written, update_only: bool) -> list[str]:
    file = json.dumps(file_name(written.path))
    architecture = "ARCHITECTURE is the name that open_clip has for the base model's, such as ViT-B-32-quickgelu"
    if update_only:
        return [
            "Add alpha times every tensor to the tensor of the base model:",
            "",
            "```python",
            "from safetensors.torch import load_file",
            f"update = load_file({file})",
            "```",
        ]
    if not all(name.startswith(PREFIX) for name in written.names):
        return [
            f"{architecture}:",
            "",
            "```python",
            "import open_clip",
            f'model = open_clip.create_model("ARCHITECTURE", pretrained={file})',
            "```",
        ]
    return [
        f"Its keys begin with `{PREFIX}`, as in the published checkpoints, and the text tower may be missing; "
        f"{architecture}, and TAG what it was trained from, such as openai:",
        "",
        "```python",
        "import open_clip",
        "from safetensors.torch import load_file",
        'model = open_clip.create_model("ARCHITECTURE", pretrained="TAG")',
        f'state = {{k.removeprefix("{PREFIX}"): v for k, v in load_file({file}).items()}}',
        "assert not model.load_state_dict(state, strict=False).unexpected_keys",
        "```",
    ]


def _is_own(path: Path, model_name: str) -> bool:
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return False
    body, newline, _ = text.removesuffix("\n").rpartition("\n")
    return text == body + newline + _seal(body + newline, model_name)


def _seal(text: str, model_name: str) -> str:
    """The last line: it no longer fits once the card is edited, and a card that someone edited is theirs."""
    digest = hashlib.sha256(os.fsencode(model_name) + b"\n" + text.encode()).hexdigest()
    return f"<!-- written by raymerge merge, {digest} -->\n"


def _row(name: str, entry: Mapping[str, str]) -> str:
    return f"| {_escaped(name)} | {_escaped(entry['file'])} | `{entry['sha256']}` |"


def _link(source: str) -> str:
    site, _, number = source.partition(":")
    return f"[{source}](https://arxiv.org/abs/{number})" if site == "arXiv" else source


def _quoted(text: str) -> str:
    """A string of YAML, which JSON is a part of."""
    return json.dumps(text)


def _escaped(text: str) -> str:
    """Plain text in Markdown, on one line and in one cell of a table."""
    text = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*[]<>|#" else c for c in text)
