"""Run folders: what was asked (`config.json`), what came of it (`record.json`), written whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.errors import FeatureCacheError, RunError, RunWriteError
from featurecache.features import comparable_data, differences
from featurecache.files import json_bytes, write_atomic
from featurecache.path_kinds import explain_path, suggest_path
from featurecache.places import Place, absolute
from featurecache.reports import Displayed, Table, import_pandas

CONFIG, RECORD = "config.json", "record.json"
TRAIN_ONE = "Train the one you want: featurecache train-head STORE"


def is_done(folder: Path, config: Mapping[str, Any]) -> bool:
    """Return whether `folder` holds the finished run of exactly this config; prepare the folder where it does not.

    Raises:
        RunError: it holds another run (names what differs), something else, or cannot be written.
    """
    known = folder / CONFIG
    if known.exists():
        found = differences(_compared(json.loads(json_bytes(config))), _compared(_read(known)))
        if found:
            lines = "\n".join(f"  {name}: that run has {theirs!r}, this one {ours!r}" for name, ours, theirs in found)
            raise RunError(f"{folder} holds another run:\n{lines}\nGive another --out.")
        return (folder / RECORD).exists()
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file, not a folder. Give another --out.")
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is a folder with other files in it. Give another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(known, json_bytes(config))
    except OSError as error:
        raise RunError(f"cannot write the run {folder}: {error.strerror or error}. Give another --out.") from None
    return False


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a run the one it is: where its images are and what their folder is called may change."""
    kept = dict(config)
    if "data_set" in kept:
        kept["data_set"] = comparable_data(kept["data_set"])
    features = kept.get("features")
    if isinstance(features, Mapping):
        kept["features"] = _same_data(features)
    elif isinstance(features, Sequence):
        kept["features"] = [_same_data(one) for one in features]
    if "data_set" in kept or (isinstance(features, Mapping) and "data" in features):
        kept.pop("data", None)  # a place; what lies there is compared by its fingerprint
    return kept


def _same_data(features: Mapping[str, Any]) -> dict[str, Any]:
    return {**features, "data": comparable_data(features["data"])} if "data" in features else dict(features)


def recorded_place(folder: Path, name: str, asked: str, place: str) -> str:
    """Return what the config of a run is to say of a place of this machine: `place`, which is absolute.

    Where a config that is there names the same place otherwise, such as relative to another folder, it is that.
    """
    return _as_recorded(_known(folder, name), asked, place)


def recorded_stores(folder: Path, name: str, stores: Sequence[Place]) -> list[str]:
    """Return the same of several stores, in their order."""
    known = _known(folder, name)
    each = known if isinstance(known, list) and len(known) == len(stores) else [None] * len(stores)
    return [_as_recorded(one, str(store), absolute(store)) for one, store in zip(each, stores, strict=True)]


def recorded_data(folder: Path, data: Sequence[str]) -> list[str]:
    """Return the same of several data sets that were moved under their names; whether they are the same, the runs on them say."""
    known = _known(folder, "data")
    moved = isinstance(known, list) and [Path(one).name for one in known] == [Path(one).name for one in data]
    return known if moved else list(data)


def _known(folder: Path, name: str) -> Any:
    return _read(folder / CONFIG).get(name) if (folder / CONFIG).exists() else None


def _as_recorded(known: Any, asked: str, place: str) -> str:
    same = isinstance(known, str) and (known == asked or str(Path(known).expanduser().resolve()) == place)
    return str(known) if same else place


def discard(folder: Path) -> None:
    """Remove what a run left that was refused on the way, so that another command may have its folder."""
    for path in list(folder.iterdir()):
        if path.is_file():
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def write_history(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write one line an epoch; a number that is none is null: JSON knows no NaN."""
    lines = [{k: v if math.isfinite(v) else None for k, v in entry.items()} for entry in history]
    write_atomic(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record, which is what makes a run finished; called last."""
    write_atomic(folder / RECORD, json_bytes(record))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the operating system refuses while a run is written into a `RunError` that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FeatureCacheError):  # of the store that is read meanwhile
            raise
        raise RunWriteError(
            f"cannot write the run {folder}: {error.strerror or error}. It does not count as finished: make room or "
            "restore access, then run the same command again, which goes on."
        ) from error


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (config, record) of a finished run.

    Raises:
        RunError: no run is there, it never finished, or a file of it is damaged.
    """
    if why := explain_path(folder, "run"):
        raise RunError(f"{folder} is not a run folder: {why}.")
    if not (folder / CONFIG).exists():
        raise RunError(
            f"{folder} is not a run folder (it has no {CONFIG}).{suggest_path(folder)} Make one with: featurecache train-head STORE --out {folder}"
        )
    if not (folder / RECORD).exists():
        raise RunError(f"the run in {folder} did not finish. Run the same command again; it goes on.")
    return _read(folder / CONFIG), _read(folder / RECORD)


def read_trained(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (config, record) of a finished run that trained a head.

    Raises:
        RunError: as `read_run`; or it compared heads and kept none, as run-protocol does.
    """
    config, record = read_run(folder)
    if not holds_head(record):
        whole = [run for run in runs_below(folder) if (run / CONFIG).exists() and holds_head(_read(run / RECORD))]
        inside = [str(run.relative_to(folder)) for run in whole]
        more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        way = f"Of the runs in it name one: {', '.join(inside[:3])}{more}." if inside else TRAIN_ONE
        raise RunError(f"{folder} holds a comparison and no head. {way}")
    return config, record


def holds_head(record: Mapping[str, Any]) -> bool:
    """Return whether a run trained a head, and did not compare several and keep none."""
    return "class_names" in record


@dataclass(frozen=True, eq=False)
class Run(Displayed):
    """A finished run, as its folder tells of it; `open_run` reads one."""

    folder: Path
    config: Mapping[str, Any]
    """What was asked."""
    record: Mapping[str, Any]
    """What came of it: metrics, identities, environment, cost."""

    def tables(self) -> list[Table]:
        """Return one row for each metric of each split, with the ends of its interval."""
        rows = [
            (split, name, found.get("value"), found.get("low"), found.get("high"))
            for split, metrics in self.record.get("metrics", {}).items()
            for name, found in metrics.items() if isinstance(found, Mapping) and "value" in found
        ]  # fmt: skip
        kind = f"head {self.record['head']}" if holds_head(self.record) else "a comparison, without a head of its own"
        title = f"run {self.folder}: {kind}"
        return [Table(title, ("split", "metric", "value", "low", "high"), rows, () if rows else (title,))]

    def json(self) -> dict[str, Any]:
        """Return folder, config and record."""
        return {"run": str(self.folder), "config": dict(self.config), "record": dict(self.record)}

    def predictions(self) -> Any:
        """Return what the run said of each of its test rows as a `pandas.DataFrame`: sample_id, label, pred, prob_<class>.

        Raises:
            FeatureCacheError: pandas is not installed.
            RunError: the run predicted nothing, since it had no such rows.
        """
        import_pandas()
        place = self.folder / "predictions.parquet"
        if not place.exists():
            raise RunError(f"{self.folder} holds no predictions: it had no rows to predict, or compared several heads.")
        from pyarrow import parquet

        return parquet.read_table(place).to_pandas()


def open_run(folder: str | Path) -> Run:
    """Return a finished run.

    Raises:
        RunError: no run is there, it never finished, or a file of it is damaged.
    """
    place = Path(folder)
    return Run(place, *read_run(place))


def runs_below(folder: Path) -> list[Path]:
    """Return the finished runs inside a folder; of a sweep over images those that it tested, not its cells."""
    final = folder / "final"
    places = [final] if (folder / RECORD).exists() and final.is_dir() else folder.iterdir() if folder.is_dir() else []
    inside = sorted(place for place in places if place.is_dir())
    return [run for place in inside for run in ([place] if (place / RECORD).exists() else runs_below(place))]


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}). Train the run again into another --out.") from None
    return found
