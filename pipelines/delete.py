"""The verb `delete`: samples taken out of a store for good, by their ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.checks import Config, check
from featurecache.errors import StoreContentsError
from featurecache.reports import Displayed, Table
from featurecache.stores import open_store


@dataclass(frozen=True, kw_only=True)
class DeleteConfig(Config):
    """Take samples out of a store for good: their bytes become zero in every array and view.

    No reader yields them and no extraction brings them back. Their ids and labels stay in the row table, so that no other
    row moves; scores are made again when they are next asked for.
    """

    store: Path
    """Store to delete from."""
    ids: tuple[str, ...]
    """Sample id, or a file with one on each line; may be given several times."""
    take_over: bool = False
    """Take the place of a writer on another machine that was silent for five minutes."""

    def __post_init__(self) -> None:
        check((bool(self.ids), "ids must name the samples to delete"))


@dataclass(frozen=True, kw_only=True)
class DeleteReport(Displayed):
    """What was deleted."""

    store: Path
    deleted: int
    """Samples that were there until now."""
    before: int
    """Samples asked for that were deleted before."""

    def tables(self) -> list[Table]:
        """Return one line of what was done."""
        again = f"; {self.before} were deleted before" if self.before else ""
        return [Table("", (), (), (f"{self.store}: {self.deleted} samples deleted{again}",))]

    def json(self) -> dict[str, Any]:
        """Return everything the line says."""
        return {"store": str(self.store), "deleted": self.deleted, "before": self.before}


def run(config: DeleteConfig) -> DeleteReport:
    """Delete the samples, and seal the store again where it was complete.

    Raises:
        StoreContentsError: an id that the store does not hold; nothing is deleted then.
        StoreBusyError: another process writes the store.
    """
    store = open_store(config.store, writable=True, take_over=config.take_over)
    try:
        rows = _rows(config, {str(name): row for row, name in enumerate(store.table().sample_id)})
        gone = {row for row in rows if store.status()[row] == "deleted"}
        store.delete(rows)
        if not store.finished and not store.missing():
            store.finish()
        return DeleteReport(store=config.store, deleted=len(rows - gone), before=len(gone))
    finally:
        store.close()


def _rows(config: DeleteConfig, known: dict[str, int]) -> set[int]:
    named: list[str] = []
    for text in config.ids:
        if text not in known and Path(text).is_file():
            named += [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]
        else:
            named.append(text)
    unknown = sorted({name for name in named if name not in known})
    if unknown:
        shown = ", ".join(map(repr, unknown[:5]))
        raise StoreContentsError(
            f"{config.store} holds no sample called {shown}{', ...' if len(unknown) > 5 else ''} ({len(unknown)} of "
            f"{len(named)}); nothing was deleted. Sample ids are as in the column sample_id."
        )
    return {known[name] for name in named}
