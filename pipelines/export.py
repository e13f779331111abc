"""The verb `export`: a run as one folder that checks itself and predicts without this package.

The folder holds one graph, images to logits, as text over torch's operators, and its tensors as safetensors: whatever the
backbone and the head are, nothing of their code is needed. The backbone's weights are copied into it, so that it works
alone. It is written beside its name, proved in a fresh process that cannot import us, and then renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from featurecache.backbones import BackboneOptions, load_backbone
from featurecache.devices import environment
from featurecache.errors import RunError
from featurecache.files import json_bytes, sync_folder, write_atomic, write_whole
from featurecache.reports import Displayed, Table
from featurecache.runs import RECORD, read_trained
from featurecache.threads import Computing, heeds_threads
from heads._checkpoint import BUILD
from pipelines.exporting import standalone
from pipelines.exporting.graph import Program, graph_of, traced
from pipelines.exporting.model_card import licence_of, model_card
from pipelines.exporting.onnx_file import can_run_onnx, check_onnx, write_onnx
from pipelines.exporting.preprocessing import described
from pipelines.exporting.proving import Evidence, evidence_of, proved
from pipelines.online.starting import trained_in
from pipelines.predicting.predictor import Predictor
from pipelines.training.closing import count_parameters, describe_training

FORMAT = 1
"""Of config.json; raise it when an older predict.py would misread a newer folder."""
TRAINING = (
    "peft", "epochs", "lr", "backbone_lr", "weight_decay", "batch_size", "optimizer", "schedule", "label_smoothing",
    "class_weights", "augment", "seed", "data_seed",
)  # fmt: skip
"""Settings of a run that the model card repeats."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Computing):
    """Write a run as one folder that checks itself and predicts without featurecache: backbone, head and preprocessing."""

    run_folder: Path
    """Run folder written by train-head, train-online or train-student."""
    out: Path
    """Folder to write; must not exist."""
    onnx: bool = False
    """Write model.onnx too, with any number of images at a time; needs pip install featurecache[onnx]."""
    data: str | None = None
    """Where the run's images are now, to prove the folder on them; default: where they were when features were made."""
    weights: str | None = None
    """Where the backbone's weights are now, if their file has moved; must be the weights of the run."""


@dataclass(frozen=True, slots=True)
class ExportReport(Displayed):
    """A folder that was written and proved."""

    out: Path
    record: Mapping[str, Any]

    def tables(self) -> list[Table]:
        """Return the files, and what the proof found."""
        files = [(name, f"{f['bytes'] / 2**20:.2f}", f["sha256"][:16]) for name, f in self.record["files"].items()]
        proof, notes = self.record["proof"], [f"{self.out}: run it with python {self.out / 'predict.py'} IMAGE"]
        for name, found in (("predict.py", proof), ("model.onnx", self.record.get("onnx", {}))):
            if "largest_difference" in found:
                notes.append(_found(name, found))
        notes += [self.record["onnx"]["note"]] if "note" in self.record.get("onnx", {}) else []
        if self.record["batch"]:
            notes.append("the code of the head or backbone fixes the number of images: the graph takes one at a time")
        notes.append(f"SHA-256 of SHA256SUMS, which names them all: {self.record['sums']}")
        return [Table("exported", ("file", "MiB", "sha256"), files, notes)]

    def json(self) -> dict[str, Any]:
        """Return the record and the folder."""
        return {"out": str(self.out), **self.record}


def _found(name: str, found: Mapping[str, Any]) -> str:
    labels = f", {found['labels_equal']} of {found['images']} labels equal" if "labels_equal" in found else ""
    stored = (
        f"; largest difference to what the run predicted {found['largest_difference_to_stored']:.2e}"
        if "largest_difference_to_stored" in found
        else ""
    )
    return (
        f"proved, {name}: {found['images']} {found['of']}, in a process without featurecache: largest difference of a logit "
        f"{found['largest_difference']:.2e} (accepted {found['tolerance']:.2e}){labels}{stored}"
    )


@heeds_threads
def run(config: ExportConfig) -> ExportReport:
    """Export the run.

    Raises:
        RunError: no finished run is there, `out` exists or cannot be written, or the folder fails its proof.
        WeightsError: the weights file has moved; give `weights`.
        BackboneError: the backbone, the head or the preprocessing cannot be put into a graph.
        ConfigError: what --onnx needs is not installed.
    """
    if config.out.exists():
        raise RunError(f"{config.out} exists already. Give another --out, or remove it.")
    if config.onnx:
        check_onnx()
    settings, record = read_trained(config.run_folder)
    predictor = Predictor.load(config.run_folder, weights=config.weights)
    predictor.decoder = "pillow"  # as the folder decodes, whatever the features were made with
    evidence = evidence_of(config.run_folder, settings, record, config.data)
    place = config.out.with_name(f".{config.out.name}.{os.getpid()}.tmp")
    try:
        place.mkdir(parents=True)
        found = export(config, settings, predictor, evidence, place)
        os.replace(place, config.out)
        sync_folder(config.out.parent)
    except OSError as error:
        raise RunError(
            f"cannot write the export {config.out}: {error.strerror or error}. Nothing is left of it."
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return ExportReport(config.out, found)


def export(
    config: ExportConfig, settings: Mapping[str, Any], predictor: Predictor, evidence: Evidence, place: Path
) -> dict[str, Any]:
    """Write the folder at `place`, prove it there, and return its record."""
    started = time.perf_counter()
    program, batch = traced(_program(predictor), predictor.backbone.input_size)
    facts = {**_facts(config.run_folder, settings, predictor), "batch": batch}
    if config.onnx:
        write_onnx(_for_onnx(config, predictor, program), place / "model.onnx", _metadata(facts))
    graph = graph_of(program, batch)
    write_whole(place / "model.safetensors", lambda path: save_file(dict(graph.tensors), path))
    write_atomic(place / "model.py", graph.source.encode())
    write_atomic(place / "predict.py", Path(standalone.__file__).read_bytes())
    write_atomic(place / "config.json", json_bytes(facts))
    sums = write_sums(place)
    record: dict[str, Any] = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"), "run": config.run_folder.absolute().name,
        "run_record": _sha256(config.run_folder / RECORD), "batch": batch, "proof": proved(place, predictor, evidence),
    }  # fmt: skip
    if config.onnx:
        record["onnx"] = _onnx_proof(place, predictor, evidence)
    record |= {"environment": environment(), "seconds": time.perf_counter() - started}
    write_atomic(place / "README.md", model_card(facts, record, onnx=config.onnx).encode())
    write_atomic(place / "record.json", json_bytes(record))
    sums = write_sums(place)
    files = {name: {"sha256": digest, "bytes": (place / name).stat().st_size} for name, digest in sums.items()}
    return {**record, "files": files, "sums": _sha256(place / "SHA256SUMS")}


def _program(predictor: Predictor) -> Program:
    return Program(predictor.backbone, predictor.head, predictor.arrays, predictor.tokens)


def _facts(run: Path, settings: Mapping[str, Any], predictor: Predictor) -> dict[str, Any]:
    """Return config.json: all that predict.py and the model card need."""
    record = predictor.record
    features = {key: value for key, value in record["features"].items() if key != "origin"}
    return {
        "format": FORMAT, "task": predictor.task, "class_names": list(predictor.class_names),
        "input_size": list(predictor.backbone.input_size), "preprocessing": described(predictor.backbone),
        "head": json.loads((run / BUILD).read_text(encoding="utf-8")), "features": features,
        "metrics": record["metrics"], "selected_by": record["selected_by"], "rows": record["rows"],
        "licence": licence_of(predictor.backbone),
        "training": {name: settings[name] for name in TRAINING if settings.get(name) is not None} if record["trained_parameters"] else {},
        "parameters": _parameters(record, predictor), "fitted": describe_training(record),
        "trained_backbone_parameters": record.get("trained_backbone_parameters", 0), "environment": record["environment"],
    }  # fmt: skip


def _parameters(record: Mapping[str, Any], predictor: Predictor) -> dict[str, int]:
    backbone = count_parameters(predictor.backbone.module)
    return {"backbone": backbone, "head": record["parameters"], "trainable": record["trained_parameters"]}


def _metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in ("class_names", "task", "input_size", "preprocessing")}


def _for_onnx(config: ExportConfig, predictor: Predictor, program: Any) -> Any:
    """Return the program in float32: onnxruntime has no convolution in half precision on a CPU."""
    if predictor.backbone.identity.get("precision", "fp32") == "fp32":
        return program
    origin = dict(predictor.record["features"]["origin"])
    name = origin.pop("name")
    given = {**origin, "precision": "fp32", **({"weights": config.weights} if config.weights else {})}
    backbone = load_backbone(name, BackboneOptions(**given))
    trained_in(config.run_folder, backbone)
    whole = Predictor(backbone, predictor.head, predictor.record)
    return traced(_program(whole), whole.backbone.input_size)[0]


def _onnx_proof(place: Path, predictor: Predictor, evidence: Evidence) -> dict[str, Any]:
    if not can_run_onnx():
        return {"note": "model.onnx was not run: onnxruntime is not installed (pip install featurecache[onnx])"}
    return proved(place, predictor, evidence, onnx=True)


def write_sums(folder: Path) -> dict[str, str]:
    """Write SHA256SUMS over every other file of the folder, as `sha256sum -c` reads it; return name -> digest."""
    found = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != standalone.SUMS}
    write_atomic(folder / standalone.SUMS, "".join(f"{digest}  {name}\n" for name, digest in found.items()).encode())
    return found


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
