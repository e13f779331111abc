"""Pages of documentation as things that run: their commands, their Python, the files they show."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\S+\.\w+)\n")


@dataclass(frozen=True)
class Step:
    """One block of a page."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """Name of the file that the block shows, where its first line is a comment with a name."""
        found = _FILE.match(self.text)
        return found[1] if found else None


def steps(page: Path) -> list[Step]:
    """Return the blocks of a page in order."""
    return [Step(language, text) for language, text in _BLOCK.findall(page.read_text(encoding="utf-8"))]


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of every `featurecache` command that a page tells the user to type."""
    lines = [line for step in steps(page) if step.language == "sh" for line in step.text.splitlines() if line]
    return [shlex.split(line)[1:] for line in lines]


def follow(page: Path) -> None:
    """Do what a page says, in the current folder; fails at the first command that fails."""
    for step in steps(page):
        if step.file:
            Path(step.file).write_text(step.text)
    namespace: dict[str, object] = {}
    for step in steps(page):
        if step.language == "sh":
            for line in filter(None, step.text.splitlines()):
                _type(line, page)
        elif step.language == "python" and not step.file:
            exec(compile(step.text, str(page), "exec"), namespace)


SHORT = {
    "train-online": ["--epochs", "1"],
    "train-student": ["--epochs", "1"],
    "compare-peft": ["--setting", "epochs=1"],
}
"""Verb that trains on images -> what makes it short: a test of a page asks whether it runs, not what it comes to."""


def _shorten(arguments: list[str]) -> list[str]:
    """Return what is added to a command that names no number of epochs itself."""
    return [] if any("epochs" in word for word in arguments) else SHORT.get(arguments[0], [])


def _type(line: str, page: Path) -> None:
    program, *arguments = shlex.split(line)
    assert program == "featurecache", f"{page.name}: {line!r} is not a command of ours"
    result = CliRunner().invoke(cli.main, [*arguments, *_shorten(arguments)])
    assert result.exit_code == 0, f"{page.name}: {line}\n{result.output}\n{result.exception!r}"
