"""What a report shows. One section, one file: `section(page) -> Section | None`; None where it has nothing to say.

A section reads runs and what is cached; images only through `Page.picture`, which may have none. Its tables and figures
are for people; `values` holds every number of them for machines.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import FeatureCacheError
from featurecache.features import comparable_data
from featurecache.fonts import quiet_fonts
from featurecache.places import placed
from featurecache.registry import Registry
from featurecache.reports import Table, format_measured
from featurecache.runs import read_trained
from featurecache.stores import FeatureStore, open_store, store_exists

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

SECTIONS = Registry("section", "pipelines.sections")
ORDER = (
    "summary", "compared", "students", "costs", "layers", "sweep", "curves", "confusion", "attention", "neighbours", "labels",
)  # fmt: skip
"""From the answer to its grounds; what is not named here comes last."""

STROKES = ("-", "--", "-.", ":")
"""Of lines in one drawing, in turn: where two lie on each other, both are seen."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A cell of a table that shows a sample, or its id where there is no picture."""

    sample_id: str

    def __str__(self) -> str:
        return self.sample_id


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing as SVG."""

    svg: bytes
    caption: str

    @property
    def uri(self) -> str:
        """The drawing as the address of an image, so that the page asks nobody for it."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of a report."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    values: Any = None


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run, with its predictions, and its store where that is still there."""

    folder: Path
    config: dict[str, Any]
    record: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    """What could not be read, for the page to say."""
    title: str = ""
    """What the report calls it, where the name of its folder is that of others too."""

    @classmethod
    def read(cls, folder: Path, title: str = "") -> Run:
        """Read a run folder.

        Raises:
            RunError: no finished run of a head is there.
        """
        return cls(folder, *read_trained(folder), title=title)

    @property
    def name(self) -> str:
        """What the report calls it."""
        return self.title or self.folder.name

    @property
    def class_names(self) -> list[str]:
        """Classes, in the order of the targets."""
        names: list[str] = self.record["class_names"]
        return names

    @property
    def is_classification(self) -> bool:
        """Whether it answers with one class."""
        return bool(self.record["task"] == "classification")

    @cached_property
    def predictions(self) -> dict[str, npt.NDArray[Any]]:
        """Columns of predictions.parquet; {} where the run has none."""
        import pyarrow.parquet

        path = self.folder / "predictions.parquet"
        if not path.exists():
            return {}
        table = pyarrow.parquet.read_table(path)
        return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}

    @cached_property
    def answers(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(label, answer) as class numbers, of the predicted rows of a classification."""
        number = {name: index for index, name in enumerate(self.class_names)}
        label, answer = (np.array([number[name] for name in self.predictions[k]], np.int64) for k in ("label", "pred"))
        return label, answer

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """(N, C) of the predicted rows of a classification."""
        return np.stack([self.predictions[f"prob_{name}"] for name in self.class_names], 1).astype(np.float64)

    @cached_property
    def store(self) -> FeatureStore | None:
        """The store that the run was trained on; None where it is gone, is another one now, or never was: that is noted."""
        if "store" not in self.config:
            self.problems.append(
                f"{self.name} was trained on images, not on a store, so nothing is said of its features"
            )
            return None
        place = placed(self.config["store"])
        try:
            found = open_store(place) if store_exists(place) else None
        except FeatureCacheError as error:
            self.problems.append(str(error))
            return None
        if found is None:
            self.problems.append(f"{place} is not there, so nothing is said of its features")
            return None
        same = comparable_data(found.header.dataset) == comparable_data(self.record["features"]["data"])
        if not same:
            self.problems.append(f"{place} is of other data now, so nothing is said of its features")
        return found if same else None

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """Rows of the store that were predicted."""
        assert self.store is not None
        ids = np.asarray(self.store.table().sample_id).tolist()
        place = {name: row for row, name in enumerate(ids)}
        return np.array([place[name] for name in self.predictions["sample_id"]], np.int64)


@dataclass(frozen=True, slots=True)
class Page:
    """What a report is about."""

    runs: Sequence[Run]
    picture: Callable[[str], str | None] = lambda sample_id: None
    """Sample id -> address of a small picture of it, where there is one."""
    comparisons: Sequence[Mapping[str, Any]] = ()
    """Records of compare-peft."""


def shown(measured: Any) -> str:
    """Return a metric of a record with its interval; nothing where it was not measured."""
    if not isinstance(measured, dict) or measured["value"] is None:
        return ""
    return format_measured(measured)


def history_of(run: Run) -> list[dict[str, Any]]:
    """Return what a run noted of its epochs; nothing where it was solved at once."""
    path = run.folder / "history.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def drawn(canvas: Canvas, caption: str) -> Figure:
    """Return a drawing of matplotlib as SVG, the same for the same drawing; a $ in a name is a letter, and begins no formula."""
    with quiet_fonts():
        import matplotlib
        from matplotlib.text import Text

        for text in canvas.findobj(Text):
            text.set_parse_math(False)
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "featurecache", "text.parse_math": False}):
            buffer = io.BytesIO()
            canvas.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return Figure(buffer.getvalue(), caption)


def sheet(width: float, height: float) -> tuple[Canvas, Any]:
    """Return (drawing, its axes) of that many inches."""
    with quiet_fonts():
        from matplotlib.figure import Figure as New

    canvas = New(figsize=(width, height), layout="constrained")
    return canvas, canvas.subplots()


def heat_map(
    values: npt.NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], caption: str, *, form: str = ".2f"
) -> Figure:
    """Return (R, C) values as colours, written into their fields where there is room; NaN is left blank."""
    canvas, axes = sheet(min(2.2 + 0.55 * len(columns), 14), min(1.0 + 0.36 * len(rows), 14))
    picture = axes.imshow(values, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 3 else 0, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    canvas.colorbar(picture, ax=axes)
    if values.size <= 400:
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if value < middle else "black"
                written = axes.text(
                    column, row, format(value, form), ha="center", va="center", color=colour, fontsize=7
                )
                written.set_in_layout(False)  # it lies in its field, and to measure it takes longer than to draw it
    return drawn(canvas, caption)
