"""What a protocol came to, as tables; from its record alone, so that to show it loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.reports import Displayed, Table
from pipelines.trialling.results import tables


@dataclass(frozen=True, slots=True)
class ProtocolReport(Displayed):
    """What a protocol came to."""

    folder: Path
    record: Mapping[str, Any]
    repeated: bool = False
    """Whether it was there already."""

    def tables(self) -> list[Table]:
        """Return one line a store, label, test and head; then the differences of heads."""
        said = "this run is there already: nothing to do" if self.repeated else f"{self.record['seconds']:.1f} s"
        files = ", ".join(self.record["files"])
        return [*tables(self.record), Table("", (), (), [*self.record["remarks"], f"{self.folder}: {said} ({files})"])]

    def json(self) -> dict[str, Any]:
        """Return the record and the folder."""
        return {"run": str(self.folder), **self.record}
