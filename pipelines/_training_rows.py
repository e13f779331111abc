"""Which samples a run learned from and chose on, kept beside its head, so that a test on them is recognised in any store.

A sample is the same where its id and its features are: of up to `SIGNED` rows the first numbers of what the head reads are
kept. They are compared with room for another dtype, and for batches of another size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from featurecache.casting import as_tensor
from featurecache.files import write_whole
from featurecache.stores import FeatureStore

FILE = "training_rows.parquet"
SIGNED = 16384
"""Rows of which features are kept at most."""
SIGNED_BYTES = 64 * 2**20
"""What of the features is read for that."""
GROUP = 16384
"""Rows that are written together."""
SCHEMA = pa.schema([("sample_id", pa.string()), ("role", pa.string()), ("signature", pa.list_(pa.float32()))])
NUMBERS = 8
TOLERANCE = 0.02
"""Difference of two signatures, relative to the larger norm, below which they are of one picture; bfloat16 rounds by 0.4 %."""

Rows = npt.NDArray[np.integer]
Signatures = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingRows:
    """The samples of a run."""

    roles: Mapping[str, str]
    """Sample id -> train or val."""
    signatures: Mapping[str, Signatures]
    """Sample id -> first numbers of its features, of those that are signed."""

    def overlap(self, ids: Sequence[str], features: Signatures | None) -> dict[str, int]:
        """Return role -> how many of some samples had it; `features` (N, n) are their signatures, None: ids decide."""
        shared = [place for place, name in enumerate(ids) if name in self.roles]
        if features is not None:
            shared = self._alike(ids, features, shared)
        found: dict[str, int] = {}
        for place in shared:
            role = self.roles[ids[place]]
            found[role] = found.get(role, 0) + 1
        return found

    def _alike(self, ids: Sequence[str], features: Signatures, shared: list[int]) -> list[int]:
        """Return those of the samples with known ids that have equal features; unsigned ones where most others have."""
        signed = [place for place in shared if ids[place] in self.signatures]
        same = {place for place in signed if _are_equal(features[place], self.signatures[ids[place]])}
        rest = set(shared) - set(signed) if 2 * len(same) > len(signed) else set[int]()
        return sorted(same | rest)


def _are_equal(one: Signatures, other: Signatures) -> bool:
    if one.shape != other.shape:
        return False
    scale = max(float(np.linalg.norm(one)), float(np.linalg.norm(other)))
    return float(np.linalg.norm(one - other)) <= TOLERANCE * scale


def sign_rows(store: FeatureStore, array: str, rows: Rows) -> Signatures:
    """Return (N, n) float32, the first numbers of some rows of an array."""
    parts = []
    for start in range(0, len(rows), 1024):
        values = store.read(array, np.asarray(rows[start : start + 1024], dtype=np.int64))
        flat = as_tensor(values, store.header.array(array).dtype).float().numpy().reshape(len(values), -1)
        parts.append(flat[:, :NUMBERS])
    return np.concatenate(parts) if parts else np.empty((0, NUMBERS), np.float32)


def write_training_rows(
    folder: Path, ids: Sequence[str], rows: Mapping[str, Rows], store: FeatureStore | None = None, array: str = ""
) -> None:
    """Write the samples that a run learned from (`train`) and chose on (`val`); signed where they are rows of a store."""
    every = np.concatenate([rows["train"], rows["val"]]).astype(np.int64)
    step = max(1, -(-len(every) // count_signed(store, array))) if store is not None else 0
    names = np.asarray(ids, dtype=np.dtypes.StringDType())

    def group(start: int) -> pa.Table:
        """Return the lines of some rows: words for all of them at once would take much memory."""
        places = range(start, min(start + GROUP, len(every)))
        signed: list[list[float] | None] = [None] * len(places)
        some = [place for place in places if step and place % step == 0]
        if store is not None and some:
            for place, values in zip(some, sign_rows(store, array, every[some]), strict=True):
                signed[place - start] = values.tolist()
        roles = ["train" if place < len(rows["train"]) else "val" for place in places]
        return pa.table(
            [pa.array(names[every[places.start : places.stop]].tolist(), pa.string()), pa.array(roles, pa.string()),
             pa.array(signed, pa.list_(pa.float32()))], schema=SCHEMA,
        )  # fmt: skip

    def write(path: Path) -> None:
        with pa.parquet.ParquetWriter(path, SCHEMA) as writer:
            for start in range(0, len(every), GROUP):
                writer.write_table(group(start))

    write_whole(folder / FILE, write)


def count_signed(store: FeatureStore, array: str) -> int:
    """Return how many rows of an array are signed: fewer of wide ones, such as all tokens of an image."""
    return min(SIGNED, max(64, SIGNED_BYTES // store.header.array(array).row_bytes))


def read_training_rows(folder: Path) -> TrainingRows | None:
    """Return the samples of a run; None of a run that did not note them."""
    if not (folder / FILE).exists():
        return None
    table = pa.parquet.read_table(folder / FILE)
    names, roles, signed = (table.column(name).to_pylist() for name in ("sample_id", "role", "signature"))
    signatures = {
        name: np.asarray(values, np.float32) for name, values in zip(names, signed, strict=True) if values is not None
    }
    return TrainingRows(dict(zip(names, roles, strict=True)), signatures)


def recall_training_rows(store: FeatureStore, rows: Mapping[str, Rows], array: str) -> TrainingRows:
    """Return the samples of a run that did not note them, from the rows of the store that it was trained on."""
    ids = np.asarray(store.table().sample_id)
    roles = {str(name): role for role in ("train", "val") for name in ids[rows[role]]}
    signed = rows["train"][:: max(1, -(-len(rows["train"]) // count_signed(store, array)))]
    names = [str(name) for name in ids[signed]]
    return TrainingRows(roles, dict(zip(names, sign_rows(store, array, signed), strict=True)))


def describe_overlap(overlap: Mapping[str, int], rows: int) -> str:
    """Return what is to be said of a test of `rows` rows on samples that the run knows; "" where it knows none."""
    trained, chose = overlap.get("train", 0), overlap.get("val", 0)
    if not trained and not chose:
        return ""
    what = [f"{trained} of these {rows} rows are training images of the run"] if trained else []
    what += [f"{chose} {'' if trained else f'of these {rows} rows '}are images that it was chosen on"] if chose else []
    return f"{' and '.join(what)} (same sample ids, equal features): this is no test of it"
