"""The proof of an export: what its folder says, in a process without this package, is what the run says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet
from PIL import Image

from featurecache.datasets import ImageDataset, open_dataset
from featurecache.decoders import decoder_known_by
from featurecache.errors import ConfigError, FeatureCacheError, RunError
from featurecache.mending import Remaking
from featurecache.opening import deleted_rows
from featurecache.places import placed
from featurecache.seeding import generator
from featurecache.stores import open_store
from pipelines._evaluation import probabilities
from pipelines.predicting.gathering import gathered, some_rows
from pipelines.predicting.predictor import Predictor

PROVED = 16
"""Images of a proof."""
TOLERANCE = {"fp32": 1e-3, "tf32": 2e-2, "bf16": 5e-2, "fp16": 2e-2}
"""By the precision of the features: of the largest logit, how much another machine's sums and the store's dtype may move one."""
STORED_TOLERANCE = 0.05
"""Of a probability, between the folder on an image's file and the run on the row of its store."""
OURS = ("featurecache", "heads", "pipelines", "cli", "save_features", "logme")

ALONE = (
    f"import runpy, sys; sys.modules.update(dict.fromkeys({OURS!r})); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""Runs a script where importing any of ours fails."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Images, and what the run said of their rows when it was trained."""

    dataset: ImageDataset
    stored: npt.NDArray[np.float64] | None
    """(N, C) probabilities, or values of a regression; None where there are none."""
    what: str
    """In words."""


def evidence_of(run: Path, settings: Mapping[str, Any], record: Mapping[str, Any], data: str | None) -> Evidence:
    """Return images of the run's own rows; drawn ones where its images are gone and `data` names no others.

    Raises:
        DatasetError, StoreError: `data` cannot be opened.
        ConfigError: it holds none of the rows that the run has predicted.
    """
    path = run / "predictions.parquet"
    table = pyarrow.parquet.read_table(path) if path.exists() else None
    try:
        dataset = _dataset(settings, data)
    except (FeatureCacheError, OSError) as problem:
        if data is not None:
            raise
        reason = str(problem).splitlines()[0]
        return Evidence(_drawn(), None, f"drawn pictures: the images of the run are not at hand ({reason})")
    place = {name: row for row, name in enumerate(dataset.table.sample_id)}
    names = [] if table is None else table.column("sample_id").to_pylist()
    known = [number for number, name in enumerate(names) if name in place]
    if names and not known:
        if data is not None:
            raise ConfigError([f"{data} holds none of the {len(names)} images that the run has predicted"])
        return Evidence(_drawn(), None, "drawn pictures: the images of the run have other names now")
    chosen = known or list(range(len(dataset)))
    picked = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, PROVED).astype(int))]
    if table is None or not known:
        return Evidence(some_rows(dataset, picked), None, "images of the run's data set")
    kind = "value" if record["task"] == "regression" else "prob"
    stored = np.stack([table.column(f"{kind}_{name}").to_numpy() for name in record["class_names"]], 1)
    rows = [place[names[number]] for number in picked]
    return Evidence(some_rows(dataset, rows), stored[picked].astype(np.float64), "images of rows the run has predicted")


def _dataset(settings: Mapping[str, Any], data: str | None) -> ImageDataset:
    """Return the images that a run was trained on: those of its store, or, where it was trained online, its own."""
    if "store" not in settings:
        return open_dataset(data or settings["data"], task=settings["task"], fingerprint="names")
    try:
        store = open_store(placed(settings["store"]))
    except FeatureCacheError:
        if data is None:
            raise
        return open_dataset(data)
    try:
        gone = deleted_rows(store)
        remaking = Remaking(Path(str(store.path)), store.notes, store.header, data=data, weights=None, device="cpu")
        images = remaking.images(store.table(), gone)
        return some_rows(images, [row for row in range(len(images)) if row not in gone])
    finally:
        store.close()


def _drawn() -> ImageDataset:
    draw = generator("proof", 0)
    sizes = draw.integers(40, 300, (PROVED, 2))
    return gathered(
        [Image.fromarray(draw.integers(0, 256, (h, w, 3)).astype(np.uint8)).resize((w, h)) for h, w in sizes]
    )


def proved(folder: Path, predictor: Predictor, evidence: Evidence, *, onnx: bool = False) -> dict[str, Any]:
    """Return what was compared and what was found, for the record.

    Raises:
        RunError: the folder does not run alone, or says something else than the run; says by how much.
    """
    count = len(evidence.dataset)
    ours = predictor.logits(evidence.dataset, batch_size=count, on_error="stop")[0].double().numpy()
    theirs = _said(folder, evidence.dataset, onnx=onnx)
    precision = str(predictor.record["features"]["backbone"].get("precision", "fp32"))
    tolerance = TOLERANCE[precision] * max(float(np.abs(ours).max()), 1e-6)
    worst = float(np.abs(ours - theirs).max())
    found: dict[str, Any] = {"images": count, "of": evidence.what, "largest_difference": worst, "tolerance": tolerance}
    if predictor.task == "classification":
        found["labels_equal"] = int((ours.argmax(1) == theirs.argmax(1)).sum())
    if not worst <= tolerance:
        raise RunError(
            f"the {'ONNX file' if onnx else 'folder'} gives other logits than the run: they differ by {worst:.3g}, and "
            f"at most {tolerance:.3g} is accepted. Nothing was written; `featurecache predict` runs it."
        )
    if evidence.stored is not None:
        found |= _against_stored(theirs, evidence.stored, predictor)
    return found


def _against_stored(theirs: npt.NDArray[Any], stored: npt.NDArray[Any], predictor: Predictor) -> dict[str, Any]:
    import torch

    values = probabilities(torch.from_numpy(theirs), predictor.task).numpy()
    worst = float(np.abs(values - stored).max())
    scale = float(np.abs(stored).max()) if predictor.task == "regression" else 1.0
    made = predictor.record["features"]["backbone"]
    exact = made.get("precision", "fp32") == "fp32" and decoder_known_by(made) == "pillow"
    if exact and not worst <= STORED_TOLERANCE * max(scale, 1e-6):
        raise RunError(
            f"the folder, on images, gives other answers than the run gave when it was trained: they differ by "
            f"{worst:.3g}. Nothing was written. Are these the run's images? Name them as the second argument: featurecache export RUN DATA."
        )
    found: dict[str, Any] = {"largest_difference_to_stored": worst}
    if predictor.task == "classification":
        found["labels_equal_to_stored"] = int((values.argmax(1) == stored.argmax(1)).sum())
    return found


def _said(folder: Path, dataset: ImageDataset, *, onnx: bool) -> npt.NDArray[np.float64]:
    """Return the (N, C) logits that the folder's own script prints, in a fresh process that cannot import us."""
    with TemporaryDirectory() as place:
        files = [_written(dataset, row, Path(place)) for row in range(len(dataset))]
        call = [sys.executable, "-I", "-c", ALONE, str(folder.absolute() / "predict.py"), "--json"]
        done = subprocess.run(
            [*call, *(["--onnx"] if onnx else []), *map(str, files)],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise RunError(f"the exported folder does not run alone: {reason}. Nothing was written.")
    return np.array([entry["logits"] for entry in json.loads(done.stdout.splitlines()[-1])], dtype=np.float64)


def _written(dataset: ImageDataset, row: int, place: Path) -> Path:
    """Return a file with the picture of a row: the bytes it is decoded from, or a lossless copy."""
    content = dataset.content(row)
    if content is None:
        path = place / f"{row:03d}.png"
        dataset.read(row).save(path)
    else:
        path = place / f"{row:03d}{Path(dataset.table.sample_id[row]).suffix}"
        path.write_bytes(content)
    return path
