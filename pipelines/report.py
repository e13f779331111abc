"""The verb `report`: what runs came to, as one page that needs nothing else: tables, drawings, and every value as JSON."""

from __future__ import annotations

import base64
import importlib.resources
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

import featurecache
from featurecache.checks import Config, check
from featurecache.datasets import open_dataset
from featurecache.errors import FeatureCacheError
from featurecache.files import write_atomic
from featurecache.reports import Displayed, Table
from featurecache.runs import RECORD, holds_head, read_run, runs_below
from featurecache.shadowing import qualify_name
from pipelines.sections import ORDER, SECTIONS, Page, Picture, Run, Section

SIDE = 64
"""Pixels of a small picture."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """Write what runs came to as one self-contained HTML page; it makes no request and needs no image."""

    runs: tuple[Path, ...]
    """Run folders, of compare-peft too, or folders of run folders."""
    out: Path = Path("report.html")
    """Page to write."""
    title: str = "featurecache report"
    """Title of the page."""
    pictures: str | None = None
    """Data set of the runs, for small pictures of the samples that the page speaks of."""

    def __post_init__(self) -> None:
        check(
            (len(self.runs) > 0, "name at least one run folder"),
            (not self.out.is_dir(), f"{self.out} is a folder. Give a file such as {self.out}/report.html"),
        )


@dataclass(frozen=True, slots=True)
class Written(Displayed):
    """A page that is written."""

    out: Path
    sections: Sequence[str]
    notes: Sequence[str]

    def tables(self) -> list[Table]:
        """Return where it is, and what it could not say."""
        return [Table("", (), (), [f"{self.out}: {', '.join(self.sections)}", *self.notes])]

    def json(self) -> dict[str, Any]:
        """Return the same."""
        return {"out": str(self.out), "sections": list(self.sections), "notes": list(self.notes)}


def run(config: ReportConfig) -> Written:
    """Read the runs and write the page.

    Raises:
        RunError: a folder holds no finished run, or a comparison of heads alone.
        DatasetNotFoundError: `pictures` is not there.
    """
    found = [inside for folder in config.runs for inside in _finished(folder)]
    compared = {folder: record for folder in found if (record := _comparison_of(folder)) is not None}
    folders = [folder for folder in found if folder not in compared]
    runs = [Run.read(folder, title) for folder, title in zip(folders, _titles(folders), strict=True)]
    page = Page(runs, _pictures(config.pictures), list(compared.values()))
    names = sorted(SECTIONS.names(), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    made = [(name, section) for name in names if (section := SECTIONS.load(name).section(page)) is not None]
    notes = list(dict.fromkeys(note for one in runs for note in one.problems))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(config.out, page_of(config.title, page, made, notes).encode())
    return Written(config.out, [section.title for _, section in made], notes)


def _finished(folder: Path) -> list[Path]:
    """Return the runs that a folder stands for: itself, if it is one, or those in it."""
    if (folder / RECORD).exists() and not (folder / "final").is_dir():
        return [folder]
    return runs_below(folder) or [folder]


def _comparison_of(folder: Path) -> Mapping[str, Any] | None:
    """Return the record of a finished comparison of methods; None of any other folder."""
    if not (folder / RECORD).exists():
        return None
    _, record = read_run(folder)
    return record if "lines" in record and not holds_head(record) else None


def _titles(folders: Sequence[Path]) -> list[str]:
    """Return the name of each folder, with as many of those above it as tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    titles = []
    for own in parts:
        others = [other for other in parts if other != own]
        length = 1
        while any(other[-length:] == own[-length:] for other in others):
            length += 1
        titles.append("/".join(own[-length:]))
    return titles


def _pictures(data: str | None) -> Callable[[str], str | None]:
    """Return sample id -> address of a small picture, from the data set where it is given."""
    if data is None:
        return lambda sample_id: None
    dataset = open_dataset(data)
    place = {name: row for row, name in enumerate(dataset.table.sample_id)}

    def picture(sample_id: str) -> str | None:
        if sample_id not in place:
            return None
        try:
            image = dataset.read(place[sample_id])
        except FeatureCacheError:  # what cannot be decoded has no picture; its id stands there instead
            return None
        small, buffer = image.convert("RGB"), io.BytesIO()
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        small.save(buffer, "JPEG", quality=85)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

    return picture


def page_of(title: str, about: Page, sections: Sequence[tuple[str, Section]], notes: Sequence[str]) -> str:
    """Return the HTML of a page."""
    values = {name: section.values for name, section in sections}
    page: str = _template().render(
        title=title, sections=sections, notes=notes, picture=about.picture, is_picture=lambda cell: isinstance(cell, Picture),
        values=_json_in_html(values), version=featurecache.__version__,
    )  # fmt: skip
    return page


def _template() -> Any:
    text = importlib.resources.files(qualify_name("pipelines")).joinpath("report.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        text
    )


def _json_in_html(value: Any) -> str:
    """Return JSON that ends no script element: < is escaped, and what is no number is null."""
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def finite(value: Any) -> Any:
    """Return a value for JSON, where what is no number is null."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
