"""The verb `verify`: whether a store is what was written, whether its backbone still gives it, and what to do if not."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from featurecache.checks import check
from featurecache.devices import environment
from featurecache.errors import StoreNotFoundError
from featurecache.features import Header
from featurecache.mending import Remaking
from featurecache.opening import deleted_rows
from featurecache.path_kinds import explain_path, suggest_path
from featurecache.progress import Bar, Stopwatch
from featurecache.provenance import PROVENANCE, damaged_lines, mend_lines, note
from featurecache.recomputing import accepted_difference, recomputed
from featurecache.reports import Displayed, Table
from featurecache.scoring import is_whole
from featurecache.stores import (
    WAYS,
    Damage,
    Examined,
    Unlike,
    examine_store,
    mend_store,
    open_store,
    store_exists,
)  # fmt: skip
from featurecache.threads import Computing, heeds_threads
from pipelines.scores import SCORES, scores_of
from pipelines.verifying.comparing import compared
from pipelines.verifying.differing import Comparison
from pipelines.verifying.precision import Precision, measure

MEASURED = 256
"""Rows of a precision report, where no other number is asked for."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(Computing):
    """Compare every byte of a store with its checksums, and name what is damaged; mend it, or hold it against another."""

    store: Path
    """Store written by extract-features."""
    repair: bool = False
    """Mend what is damaged: from the store itself where that is enough, else from its images and its backbone."""
    accept: bool = False
    """With --repair: take features that come out otherwise than recorded, and record them so."""
    recompute: int = 0
    """Run the backbone again on at least so many rows, and tell the largest difference; 16 are enough to see a change."""
    against: Path | None = None
    """Another store: are these the same features, and if not, what differs?"""
    precision: bool = False
    """Tell what float16, bfloat16 and int8 per channel take from every array, on --recompute rows (256 by default)."""
    data: str | None = None
    """Where the images are now; default: where they were."""
    weights: str | None = None
    """Weights file of the backbone, where it has moved."""
    device: str = "cpu"
    """Device to run the backbone on: cpu, cuda, cuda:1, auto."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        check(
            (self.recompute >= 0, f"recompute must not be negative, got {self.recompute}"),
            (self.repair or not self.accept, "accept says what a repair may take: give it with repair"),
        )


@dataclass(frozen=True, kw_only=True)
class Farthest:
    """The largest difference of one array between what is stored and what the backbone gives now."""

    array: str
    rows: int
    relative: float
    absolute: float
    sample_id: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport(Displayed):
    """What a verification found."""

    store: Path
    finished: bool
    rows: int
    committed: int
    bytes: int
    """Bytes that were read."""
    seconds: float
    damages: tuple[Damage, ...]
    """What is not what was written, after the repair where there was one."""
    repaired: tuple[Damage, ...] = ()
    unlike: tuple[Unlike, ...] = ()
    """What was made again, came out otherwise, and was left."""
    strangers: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    recomputed: tuple[Farthest, ...] | None = None
    accepted: float = 0.0
    """Difference of a recomputed row that another machine may make."""
    comparison: Comparison | None = None
    precision: Precision | None = None

    @property
    def changed(self) -> bool:
        """Whether the backbone no longer gives what is stored."""
        return any(array.relative > self.accepted for array in self.recomputed or ())

    @property
    def exit_code(self) -> int:
        """1 where something is damaged, changed, or not the same as in the other store."""
        apart = self.comparison is not None and not self.comparison.same
        return int(bool(self.damages) or bool(self.unlike) or self.changed or apart)

    def tables(self) -> list[Table]:
        """Return what is damaged, and the answers to what else was asked."""
        columns = ("file", "array", "rows", "what is wrong")
        shown = [
            Table("damaged", (*columns, "can be mended"), [(*_named(d), WAYS[d.way]) for d in self.damages]),
            Table("repaired", (*columns, "mended"), [(*_named(d), WAYS[d.way]) for d in self.repaired]),
            Table("left as it is", ("file", "why"), [(one.file, one.what) for one in self.unlike]),
            Table("", (), (), list(self._notes())),
        ]
        if self.recomputed is not None:
            rows = [(a.array, a.rows, f"{a.relative:.1e}", f"{a.absolute:.3g}", a.sample_id) for a in self.recomputed]
            titles = ("array", "rows", "largest difference, relative", "of one value", "sample")
            shown.append(Table("computed again", titles, rows, (self._farthest(),)))
        if self.precision is not None:
            shown.append(self.precision.table())
        return [*shown, *(self.comparison.tables() if self.comparison else ())]

    def _notes(self) -> list[str]:
        what = f"{self.committed} of {self.rows} rows" if not self.finished else f"{self.rows} rows"
        read = f"{self.bytes / 2**20:.1f} MiB read in {self.seconds:.1f} s"
        if self.damages:
            things = "1 thing is" if len(self.damages) == 1 else f"{len(self.damages)} things are"
            way = " --repair mends what can be mended." if not self.repaired and not self.unlike else ""
            sentence = f"{self.store}: {things} not what was written ({read}).{way}"
        else:
            sentence = f"{self.store}: {what} are what was written ({read})"
        unfinished = (
            ["the store is not finished: the same extract-features command goes on"] if not self.finished else []
        )
        strange = [f"does not belong to the store: {name}" for name in self.strangers]
        others = (
            ["This machine, or its libraries, no longer give what is recorded. --accept takes what they give now."]
            if any(one.file.rpartition("/")[0] for one in self.unlike)
            else []
        )
        return [sentence, *unfinished, *self.remarks, *strange, *others]

    def _farthest(self) -> str:
        if not self.recomputed:
            return "no whole batch is committed, so nothing was computed again"
        worst = max(self.recomputed, key=lambda array: array.relative)
        judged = "more than" if self.changed else "within"
        return (
            f"the largest difference of all is {worst.relative:.1e} of a row's size ({worst.array} of "
            f"{worst.sample_id!r}), {judged} the {self.accepted:.0e} that another machine or version may make"
        )

    def json(self) -> dict[str, Any]:
        """Return everything the tables say."""
        names = ("finished", "rows", "committed", "bytes", "seconds", "strangers", "remarks", "accepted", "changed")
        told = {name: [_plain(d) for d in getattr(self, name)] for name in ("damages", "repaired")}
        return {
            "store": str(self.store), **{name: getattr(self, name) for name in names}, **told,
            "unlike": [asdict(one) for one in self.unlike],
            "recomputed": None if self.recomputed is None else [asdict(array) for array in self.recomputed],
            "against": self.comparison.json() if self.comparison else None,
            "precision": self.precision.json() if self.precision else None,
        }  # fmt: skip


def _named(damage: Damage) -> tuple[str, str, str, str]:
    rows = "" if damage.rows is None else f"{damage.rows.start}-{damage.rows.stop - 1}"
    return damage.file, damage.array + (f" (view {damage.view})" if damage.view else ""), rows, damage.what


def _plain(damage: Damage) -> dict[str, Any]:
    rows = None if damage.rows is None else [damage.rows.start, damage.rows.stop]
    return {**asdict(damage), "rows": rows, "mends": WAYS[damage.way]}


@heeds_threads
def run(config: VerifyConfig) -> VerifyReport:
    """Examine the store, mend it where that is asked, and answer what else is asked of it.

    Raises:
        StoreNotFoundError: nothing is there.
        StoreMismatchError, StoreContentsError: images or backbone are needed, and are not those of the store.
    """
    if not store_exists(config.store):
        near = suggest_path(config.store)
        raise StoreNotFoundError(f"{config.store} does not exist. Name a store written by extract-features.{near}")
    if why := explain_path(config.store, "store"):
        raise StoreNotFoundError(f"{config.store} is not a feature store: {why}.")
    watch, counted = Stopwatch(), [0]
    found = _examined(config, watch, counted)
    repaired: tuple[Damage, ...] = ()
    unlike: list[Unlike] = []
    if config.repair and found.damages:
        before = found.damages
        unlike = _repair(config, found)
        found = _examined(config, watch, counted)
        left = {_named(damage)[:3] for damage in found.damages}
        repaired = tuple(damage for damage in before if _named(damage)[:3] not in left)
    elif config.repair and found.finished:
        _settle(config.store)
    header = found.header
    report = VerifyReport(
        store=config.store, finished=found.finished, rows=header.rows if header else 0, committed=_committed(found),
        bytes=counted[0], seconds=watch.elapsed, damages=found.damages, repaired=repaired, unlike=tuple(unlike),
        strangers=found.strangers, remarks=found.remarks,
    )  # fmt: skip
    return _answered(report, config, header)


def _answered(report: VerifyReport, config: VerifyConfig, header: Header | None) -> VerifyReport:
    """Add what needs the store to be read, where it can be trusted; of a damaged one, that it was left out."""
    asked = config.recompute or config.precision or config.against
    if not asked:
        return report
    if header is None or report.damages:
        left = "nothing was computed again or compared: a damaged store says nothing of its features. Mend it first."
        return replace(report, remarks=(*report.remarks, left))
    store, remaking = open_store(config.store), _remaking(config, header, None)
    if config.recompute or config.precision:
        images = remaking.images(store.table(), deleted_rows(store))
    if config.recompute:
        found = recomputed(remaking.backbone, images, store, config.recompute)
        report = replace(report, recomputed=_farthest(found), accepted=accepted_difference(header))
    if config.precision:
        rows = config.recompute or MEASURED
        report = replace(report, precision=measure(remaking.backbone, images, store, rows))
    if config.against is not None:
        report = replace(report, comparison=compared(store, open_store(config.against)))
    return report


def _remaking(config: VerifyConfig, header: Header, notes: Path | None) -> Remaking:
    where = open_store(config.store).notes if notes is None else notes
    return Remaking(config.store, where, header, data=config.data, weights=config.weights, device=config.device)


def _farthest(found: Sequence[Any]) -> tuple[Farthest, ...]:
    """Return the largest difference of every array."""
    arrays: dict[str, list[Any]] = {}
    for one in found:
        arrays.setdefault(one.array, []).append(one)
    return tuple(
        Farthest(
            array=name, rows=len(ones), relative=max(one.relative for one in ones),
            absolute=max(one.absolute for one in ones), sample_id=max(ones, key=lambda one: one.relative).sample_id,
        )
        for name, ones in arrays.items()
    )  # fmt: skip


def _committed(found: Examined) -> int:
    if found.header is None or found.state is None:
        return 0
    names = [spec.name for spec in found.header.arrays]
    missing = found.state.missing(names, range(found.header.views), found.header.rows)
    return found.header.rows - sum(map(len, missing))


def _examined(config: VerifyConfig, watch: Stopwatch, counted: list[int]) -> Examined:
    """Examine the store and what is kept beside it."""
    total = _size(config.store)
    with Bar("reading", total, 0, config.quiet, unit="bytes") as bar:

        def seen(count: int) -> None:
            counted[0] += count
            bar.advance(count, watch)

        found = examine_store(config.store, seen)
    return replace(found, damages=(*found.damages, *_noted(found.notes)))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _noted(notes: Path) -> list[Damage]:
    """Return damage of what is kept beside the features."""
    lines = [
        Damage(file=PROVENANCE, what=f"line {number} is not the one that was written", way="journal")
        for number in damaged_lines(notes)
    ]
    files = sorted((notes / "scores").glob("*.json"))
    scores = [
        Damage(file=f"scores/{path.name}", what="is not the file that was written", way="scores")
        for path in files if not is_whole(path)
    ]  # fmt: skip
    return [*lines, *scores]


def _repair(config: VerifyConfig, found: Examined) -> list[Unlike]:
    """Mend the notes, then the store, then the scores; each kind of thing with what it needs."""
    kinds: dict[bool, list[Damage]] = {True: [], False: []}
    for damage in found.damages:
        kinds[damage.file == PROVENANCE or damage.way == "scores"].append(damage)
    beside, inside = kinds[True], kinds[False]
    if any(damage.file == PROVENANCE for damage in beside):
        mend_lines(found.notes)  # first: it says where the images are
    unlike: list[Unlike] = []
    if inside and found.header is not None:
        remaking = _remaking(config, found.header, found.notes)
        unlike = mend_store(config.store, remaking.of, accept=config.accept)
    for damage in beside:
        if damage.way == "scores":
            _score_again(config.store, found.notes / damage.file)
    if not damaged_lines(found.notes):
        note(found.notes, _facts(config, found.damages))
    return unlike


def _settle(path: Path) -> None:
    """End what a repair had left that was killed before its file had its name, or before the folder beside it was gone."""
    if open_store(path).finished:
        return
    store = open_store(path, writable=True)
    try:
        if not store.finished:
            store.finish()
    finally:
        store.close()


def _score_again(store: Path, kept: Path) -> None:
    if kept.stem in SCORES.names():
        kept.unlink()
        scores_of(open_store(store), [kept.stem])


def _facts(config: VerifyConfig, damages: Sequence[Damage]) -> dict[str, Any]:
    """Return what is recorded of a repair."""
    files = sorted({damage.file for damage in damages})
    made_with = {"environment": environment(), "device": config.device} if config.accept else {}
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": sys.argv, "repaired": files, **made_with}
