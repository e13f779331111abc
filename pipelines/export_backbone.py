"""The verb `export-backbone`: what a run made of its backbone as one file of plain tensors, without this package's parts.

Either the whole backbone with what was trained folded in, a checkpoint for the library that builds it; or what was trained
alone, in the names of a paper's code. A folded backbone is proved before it is written: a plain model must say the same.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from featurecache.backbones import Backbone
from featurecache.checks import Config
from featurecache.errors import BackboneError, RunError
from featurecache.files import write_atomic
from featurecache.peft import Adapted, adapt, foldable_in, published_families, published_state
from featurecache.reports import Displayed, Table
from featurecache.runs import read_trained
from pipelines.online.starting import trained_in
from pipelines.predicting.predictor import rebuilt

IMAGES = 4
"""Of noise, on which the folded backbone is compared with what was trained."""
ACCEPTED = 1e-5
"""Largest difference between them, as a share of the largest value; float32 keeps seven digits."""


@dataclass(frozen=True, kw_only=True)
class ExportBackboneConfig(Config):
    """Write what a run made of its backbone: whole, with what was trained folded in, or what was trained alone."""

    run_folder: Path
    """Run folder written by train-online with a method that trains something of the backbone."""
    out: Path
    """File to write, .safetensors; must not exist."""
    names: str | None = None
    """Write what was trained alone, not folded in, in the names of a paper's code: peft, ila or dtl; default: fold it in."""
    weights: str | None = None
    """Where the backbone's weights are now, if their file has moved; must be the weights of the run."""


@dataclass(frozen=True, slots=True)
class ExportBackboneReport(Displayed):
    """A file that was written."""

    out: Path
    facts: Mapping[str, Any]

    def tables(self) -> list[Table]:
        """Return what is in the file, and what the proof found."""
        difference = self.facts.get("largest_difference")
        proof = "" if difference is None else (
            f": a plain model with it says what the run's says, largest difference {difference:.1e} of the largest value "
            f"(accepted {ACCEPTED:.0e})"
        )  # fmt: skip
        return [Table("", (), (), (f"{self.out}: {self.facts['tensors']} tensors of {self.facts['method']}{proof}",))]

    def json(self) -> dict[str, Any]:
        """Return the facts and the file."""
        return {"out": str(self.out), **self.facts}


def run(config: ExportBackboneConfig) -> ExportBackboneReport:
    """Write the file.

    Raises:
        RunError: no finished run that trained its backbone is there, or `out` exists or cannot be written.
        BackboneError: its method cannot be folded in (names those that can), or the folded backbone says something else.
        UnknownNameError: there are no such published names.
    """
    if config.out.exists():
        raise RunError(f"{config.out} exists already. Give another --out, or remove it.")
    if config.out.suffix != ".safetensors":
        raise RunError(f"{config.out} must end with .safetensors, which is what is written.")
    _, record = read_trained(config.run_folder)
    method = str(record.get("peft", {}).get("method", "none"))
    backbone = rebuilt(config.run_folder, record, weights=config.weights, trained=False)
    plain = copy.deepcopy(backbone.module)
    adapted = trained_in(config.run_folder, backbone)
    if adapted is None:
        raise RunError(
            f"{config.run_folder} trained nothing of its backbone, so its weights are those that it was given."
        )
    facts: dict[str, Any] = {"method": method, "backbone": backbone.name, "classes": list(record["class_names"])}
    if config.names is None:
        state, facts["largest_difference"] = folded(adapted, plain, backbone, method)
    else:
        state, facts["names"] = published_state(adapted, config.names), config.names
    facts["tensors"] = len(state)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(config.out, safetensors.torch.save(tensors, {"featurecache": json.dumps(facts), "format": "pt"}))
    except OSError as error:
        raise RunError(f"cannot write {config.out}: {error.strerror or error}. Nothing is left of it.") from error
    return ExportBackboneReport(config.out, facts)


def _family(method: str) -> str:
    """Return whose names the values of a method have: dtl and ila begin with theirs, all others are of the study."""
    return next((family for family in published_families() if method.startswith(family)), "peft")


def folded(adapted: Adapted, plain: nn.Module, backbone: Backbone, method: str) -> tuple[dict[str, Tensor], float]:
    """Return (state dict of a plain model with what was trained folded in, largest difference as a share of the largest value).

    Raises:
        BackboneError: the method cannot be folded in, or the plain model says something else.
    """
    if adapted.merge is None:
        raise BackboneError(
            f"what {method} adds cannot be folded into {backbone.name}: it is no linear map of what was there. Of the "
            f"methods, these can: {', '.join(foldable_in(plain))}. featurecache export RUN writes this one whole, and "
            f"--names {_family(method)} what it trained alone."
        )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, *backbone.input_size, generator=generator).to(backbone.device)
    with torch.no_grad():
        trained = adapted.embed(images).double()
        adapted.merge()
        state = adapted.module.state_dict()
        extra = sorted(state.keys() - plain.state_dict().keys())
        if extra:
            raise BackboneError(f"folding {method} in makes parameters that a plain model has not: {', '.join(extra)}.")
        plain.load_state_dict(state)
        found = (adapt("none", plain, {}).embed(images).double() - trained).abs().max() / trained.abs().max()
    if not float(found) <= ACCEPTED:
        raise BackboneError(
            f"the folded backbone differs from the trained one by {float(found):.1e} of the largest value, more than "
            f"{ACCEPTED:.0e}. Nothing was written."
        )
    return state, float(found)
