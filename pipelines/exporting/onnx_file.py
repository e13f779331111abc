"""The graph of a run as an ONNX file: any number of images, classes and preprocessing in its metadata."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from featurecache.errors import BackboneError, ConfigError

MAKERS = ("onnx", "onnxscript")
RUNNER = "onnxruntime"


def check_onnx() -> None:
    """Refuse before anything is built where ONNX files cannot be made.

    Raises:
        ConfigError: says what to install.
    """
    lacking = [name for name in MAKERS if importlib.util.find_spec(name) is None]
    if lacking:
        raise ConfigError([f"--onnx needs {', '.join(lacking)}: pip install featurecache[onnx], or leave --onnx out"])


def can_run_onnx() -> bool:
    """Return whether onnxruntime is installed."""
    return importlib.util.find_spec(RUNNER) is not None


def write_onnx(program: ExportedProgram, path: Path, facts: Mapping[str, Any]) -> None:
    """Write the graph, with its inputs called images and logits, and `facts` as JSON texts in its metadata.

    Raises:
        BackboneError: ONNX has no word for an operator of the graph.
    """
    quiet = (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()))
    level, loud = logging.WARNING, logging.getLogger("onnxscript")
    try:
        level = loud.level
        loud.setLevel(logging.ERROR)
        with quiet[0], quiet[1], warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"]
            )
    except Exception as error:  # the exporter has errors of its own for each of its steps
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(f"the graph has no form in ONNX ({reason}). Leave --onnx out.") from error
    finally:
        loud.setLevel(level)
    assert made is not None, "with dynamo=True the exporter returns a program"
    made.model.metadata_props.update({name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()})
    made.save(str(path))
