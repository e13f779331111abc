"""The verbs that look after stores: `convert` writes one again in the other format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from featurecache.checks import Config, check
from featurecache.errors import StoreContentsError, StoreError
from featurecache.progress import Stopwatch
from featurecache.reports import Displayed, Table
from featurecache.stores import copy_store, format_of, open_store, same_store, store_exists
from pipelines._narrowing import narrow, tell


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Config):
    """Write a finished store again in the format that the suffix of --out names, and check the copy array by array."""

    store: Path
    """Finished store to copy; it stays as it is."""
    out: Path
    """Store to write: .zarr, or .h5 for one file; the suffix names the format."""
    dtype: Literal["float16", "bfloat16"] | None = None
    """Keep the features of a float32 store in fewer bits, refused where that would lose too much; default: as they are."""

    def __post_init__(self) -> None:
        check((self.store != self.out, f"out must be another path than the store, got {self.out} twice"))


@dataclass(frozen=True, kw_only=True)
class ConvertReport(Displayed):
    """What a conversion did."""

    store: Path
    out: Path
    rows: int
    arrays: tuple[str, ...]
    was_there: bool
    """Whether `out` held all of this before, so that nothing was written."""
    seconds: float

    def tables(self) -> list[Table]:
        """Return one line of what was done."""
        what = f"{self.rows} rows of {len(self.arrays)} arrays"
        if self.was_there:
            return [Table("", (), (), (f"{self.out} holds all of {self.store} already: nothing to do",))]
        done = f"{self.out}: {what} of {self.store}, read again and equal, in {self.seconds:.1f} s"
        return [Table("", (), (), (done,))]

    def json(self) -> dict[str, Any]:
        """Return everything the table says."""
        plain = {"store": str(self.store), "out": str(self.out), "arrays": list(self.arrays)}
        return {**plain, "rows": self.rows, "was_there": self.was_there, "seconds": self.seconds}


def convert(config: ConvertConfig) -> ConvertReport:
    """Copy the store, unless `out` is that copy already.

    Raises:
        StoreContentsError: the source is not finished.
        StoreError: `out` is there and holds something else.
        StoreDamagedError: the source does not hold what was committed.
    """
    format_of(config.out)  # what cannot be written is told before anything is read
    watch, source = Stopwatch(), open_store(config.store)
    if not source.finished:
        lacking = sum(map(len, source.missing()))
        raise StoreContentsError(
            f"{config.store} is not finished ({lacking} of {source.header.rows} rows are not committed), so it cannot be "
            "converted. Run the same extract-features command again; it goes on where it stopped."
        )
    there = store_exists(config.out)
    if config.dtype is not None:
        there = narrow(source, config.out, config.dtype)
        tell(source, config.out, config.dtype)
    elif there:
        target = open_store(config.out)
        if not (target.finished and same_store(source, target)):
            raise StoreError(f"{config.out} is there, and is not a copy of {config.store}. Give another --out.")
    else:
        copy_store(source, config.out)
    return ConvertReport(
        store=config.store, out=config.out, rows=source.header.rows, was_there=there, seconds=watch.elapsed,
        arrays=tuple(spec.name for spec in source.header.arrays),
    )  # fmt: skip
