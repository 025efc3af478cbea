"""The pages of the documentation: their blocks, commands, links and headings."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md"]
PAGES += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
COMMENTED = ["cluster.yaml"]
for folder in ("examples", "sweeps"):
    COMMENTED += sorted(f"{folder}/{path.name}" for path in (ROOT / folder).iterdir())
"""Files in whose comments commands stand: the examples, the sweeps, and the cluster."""


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The path in the first line of a block that is a whole file."""
        found = re.match(r"# ([\w./-]+/[\w.-]+|[\w.-]+\.ya?ml)\n", self.text)
        return found and found[1]


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def tokens_of(page: str) -> list[Token]:
    """All of them, those inside others too, with the lines of their parents."""

    def flat(tokens: list[Token], line: list[int] | None) -> Iterator[Token]:
        for token in tokens:
            token.map = token.map or line
            yield token
            yield from flat(token.children or [], token.map)

    return list(flat(MarkdownIt("commonmark").enable("table").parse(text_of(page)), None))


def blocks_of(page: str) -> list[Block]:
    """Blocks of code, indented ones with the language ''."""
    found = [token for token in tokens_of(page) if token.type in ("fence", "code_block")]
    return [Block(page, token.map[0] + 1 if token.map else 0, token.info, token.content) for token in found]


def inline_code(page: str) -> list[tuple[int, str]]:
    """Line of the paragraph, and the code on one line."""
    found = [token for token in tokens_of(page) if token.type == "code_inline"]
    return [(token.map[0] + 1 if token.map else 0, " ".join(token.content.split())) for token in found]


def links_of(page: str) -> list[str]:
    """Of text and of images."""
    targets = [token.attrGet("href") or token.attrGet("src") for token in tokens_of(page)]
    return [str(target) for target in targets if target]


def anchors_of(page: str) -> set[str]:
    """As GitHub names headings."""
    tokens = tokens_of(page)
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- commands --------------------------------------------------------------------------------------------------------


def shell_lines(text: str) -> list[str]:
    """Command lines of a script: continued lines are joined, comments dropped."""
    lines = text.replace("\\\n", " ").splitlines()
    lines = [re.sub(r"(^|\s+)#(\s.*|$)", "", line) for line in lines]
    return [" ".join(line.split()) for line in lines if line.strip()]


def console_commands(text: str) -> list[tuple[str, str]]:
    """Commands behind `$ `, and what each prints."""
    parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def commands_of(block: Block) -> list[str]:
    """The command lines of a block that holds commands."""
    if block.language == "console":
        return [command for command, _ in console_commands(block.text)]
    return shell_lines(block.text) if block.language == "bash" else []


def commented_commands(name: str) -> list[str]:
    """Commands in the comments of a file; what they do may stand behind four blanks."""
    found = re.findall(r"^#\s+((?:raymerge|ray|sbatch) .*)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    return [re.split(r"\s{4,}", line)[0] for line in found]


def split_commands(line: str) -> list[list[str]]:
    """Words of every command of a line; a command in quotes, as `ray exec` takes it, is one of them too."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if not word.strip("();<>|&"):
            commands.append([])
            continue
        commands[-1].append(word)
        if re.search(r"\bray(merge)? ", word):
            commands[-1:-1] = split_commands(word)
    return [command for command in commands if command]


def program_calls(line: str) -> Iterator[list[str]]:
    """The calls of `ray` and `raymerge` in a line, without what stands before them."""
    for words in split_commands(line):
        while words and re.fullmatch(r"\w+=\S*|srun|env|do", words[0]):
            words = words[1:]
        if words and (program := words[0].rpartition("/")[2]) in ("ray", "raymerge"):
            yield [program, *words[1:]]


def find_command(group: Any, words: list[str]) -> tuple[Any, list[str]]:
    """The command that words without the program's name call, and what is left of them.

    Raises:
        LookupError: naming the word that is no command.
    """
    command, words = group, list(words)
    while hasattr(command, "commands"):
        name = next((word for word in words if not word.startswith("-")), None)
        if name is None:
            break
        words.remove(name)
        if name not in command.commands:
            raise LookupError(name)
        command = command.commands[name]
    return command, words


def unknown_options(group: Any, words: list[str]) -> list[str]:
    """Subcommands and options in the words behind the program's name that the program does not have."""
    try:
        command, words = find_command(group, words)
    except LookupError as error:
        return [str(error)]
    if "--" in words:
        words = words[: words.index("--")]
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    return [word for word in words if word.startswith("-") and word.partition("=")[0] not in {*known, "--help"}]


def refusal(group: Any, words: list[str]) -> str | None:
    """What the parser of a program has against the words behind its name; N stands for a number."""
    try:
        command, words = find_command(group, words)
        command.make_context("x", ["1" if word == "N" else word for word in words])
    except Exception as error:  # of classes that typer and click do not share
        if type(error).__name__ != "Exit":  # of --version
            return error.format_message() if hasattr(error, "format_message") else repr(error)
    return None
