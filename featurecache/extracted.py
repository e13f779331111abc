"""What an extraction did, in words and in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurecache.reports import Displayed, Table


@dataclass(frozen=True, kw_only=True)
class ExtractionReport(Displayed):
    """What an extraction did."""

    store: Path
    rows: int
    kept: int
    """Rows that were committed before, in every array."""
    recomputed: int
    """Rows that a stopped run had begun to compute, but not committed."""
    skipped: int
    was_finished: bool
    """Whether the store was finished before, so that nothing was computed."""
    seconds: float
    """From the first row to the last score."""
    waited: Mapping[str, float]
    """What was waited for (decode, model, write, scores) -> seconds."""
    scores: list[dict[str, Any]]
    rounding: Mapping[str, float] = field(default_factory=dict)
    """Array -> what the store's dtype took from the rows computed by this run, relative to their size."""
    added: tuple[str, ...] = ()
    """Arrays and views by which the store was extended."""
    share: range | None = None
    """Rows of the store that this process was to compute, beside others; None: all."""
    left: int = 0
    """Rows of the store that are not committed."""
    finished: bool = True
    """Whether the store is complete and sealed."""
    beyond: tuple[str, ...] = ()
    """Arrays and views that the store holds and this run did not ask for."""
    division: str = ""
    """Rule by which `split` has divided the store; "": it is divided as its data are."""

    def tables(self) -> list[Table]:
        """Return one table: what the dtype costs each array, and LogME of those that are vectors."""
        scores = {score["array"]: f"{score['score']:.4f}" for score in self.scores}
        errors = {name: f"{error:.1e}" for name, error in self.rounding.items()}
        named = {"rounding error": errors, "LogME of the training rows": scores}
        columns = {title: values for title, values in named.items() if values}
        arrays = sorted({name for values in columns.values() for name in values})
        rows = [(array, *(values.get(array, "") for values in columns.values())) for array in arrays]
        return [Table("", ("array", *columns), rows, list(self._notes()))]

    def _notes(self) -> Iterator[str]:
        computed = self.rows - self.kept
        more = f", and more than that ({_named(self.beyond)})" if self.beyond else ""
        if self.was_finished:
            yield f"{self.store} holds all of this already{more}: nothing to do"
        else:
            shares = " ".join(f"{what} {seconds / self.seconds:.0%}" for what, seconds in self.waited.items())
            where = "" if self.share is None else f" of this share ({self._span()})"
            yield f"{self.store}: {self.rows} rows{where}, {computed} computed in {self.seconds:.1f} s ({shares})"
            if more:
                yield f"holds all that was asked for{more}"
        if self.added:
            yield f"extended by {_named(self.added)}; what was there is as it was"
        elif not self.was_finished and (self.kept or self.recomputed):
            yield f"went on: kept {self.kept} rows, recomputed {self.recomputed}"
        if self.division:
            yield f"its rows stay divided as `featurecache split` divided them ({self.division})"
        if self.share is not None:
            yield self._end()
        if self.skipped:
            counted = (
                "1 row is skipped: its image" if self.skipped == 1 else f"{self.skipped} rows are skipped: their images"
            )
            yield f"{counted} cannot be read"

    def _span(self) -> str:
        assert self.share is not None
        return f"rows {self.share.start} to {self.share.stop - 1}" if self.share else "empty: fewer chunks than shares"

    def _end(self) -> str:
        if self.finished:
            return "the store is finished"
        if self.left:
            return f"the store still lacks {self.left} rows of other shares; the last one to end finishes it"
        return "nothing is missing any more; the writer of another share is finishing the store"

    def json(self) -> dict[str, Any]:
        """Return everything the tables say."""
        plain = {"store": str(self.store), "added": list(self.added), "beyond": list(self.beyond)}
        names = ("rows", "kept", "recomputed", "skipped", "was_finished", "seconds", "waited", "scores", "rounding")
        share = {"share": None if self.share is None else [self.share.start, self.share.stop]}
        state = {"left": self.left, "finished": self.finished, "division": self.division}
        return {**plain, **{name: getattr(self, name) for name in names}, **share, **state}


def _named(names: Sequence[str]) -> str:
    shown = [*names[:2], f"{len(names) - 3} more", names[-1]] if len(names) > 4 else names
    return ", ".join(shown)
