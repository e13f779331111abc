"""Going on from a finished run, cached or online: its head, and what it trained in its backbone; what must be equal is checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from featurecache.backbones import Backbone
from featurecache.datasets import ImageDataset
from featurecache.errors import RunError
from featurecache.features import differences
from featurecache.peft import ADAPTED, Adapted, adapt, load_adapted, of_the_backbone
from featurecache.runs import read_run, read_trained
from heads import HeadSpec
from heads._checkpoint import load_head
from pipelines.online.settings import TrainOnlineConfig
from pipelines.online.settled import settled


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """The head of a run, and where its backbone stands."""

    run: Path
    head: nn.Module
    spec: HeadSpec
    method: str
    """Of this training."""
    options: Mapping[str, Any]

    def adapted_in(self, backbone: Backbone) -> Adapted:
        """Put the method into the backbone, with the values of the run where it trained some.

        Raises:
            RunError: the file of the values is missing, damaged, or of another backbone.
        """
        found = trained_in(self.run, backbone)
        return found or adapt(self.method, backbone.module, self.options)

    def check_spec(self, wanted: HeadSpec) -> None:
        """Refuse a head that reads other arrays.

        Raises:
            RunError: names both.
        """
        ours, theirs = (
            {"combine": spec.combine, "reads": {name: list(shape) for name, shape in spec.shapes.items()}}
            for spec in (wanted, self.spec)
        )
        if list(wanted.shapes) != list(self.spec.shapes) or ours != theirs:
            raise RunError(
                f"the head in {self.run} reads {', '.join(self.spec.shapes)} ({self.spec.combine}), but this one would read "
                f"{', '.join(wanted.shapes)} ({wanted.combine}). Give the --layers and --tokens of that run."
            )


def trained_in(run: Path, backbone: Backbone) -> Adapted | None:
    """Put into a backbone what a run trained in it; None where it trained the head alone.

    Raises:
        RunError: the file of the values is missing, damaged, or of another backbone.
    """
    found = load_adapted(run, backbone.module, backbone.identity)
    if found is None and read_run(run)[1].get("trained_backbone_parameters"):
        raise RunError(f"{run} trained its backbone, but its {ADAPTED} is gone. Bring it back, or train the run again.")
    return found


def start_of(run: Path, config: TrainOnlineConfig, identity: Mapping[str, Any], dataset: ImageDataset) -> Start:
    """Return what a finished run leaves to go on with.

    Raises:
        RunError: there is none, or it is of another backbone, head, method, or of other classes; names all that differs.
    """
    _, record = read_trained(run)
    head, spec = load_head(run)
    ours: dict[str, Any] = {
        "backbone": of_the_backbone(identity), "task": dataset.task, "class_names": list(dataset.class_names),
    }  # fmt: skip
    theirs = {
        "backbone": of_the_backbone(record["features"]["backbone"]), "task": record["task"],
        "class_names": record["class_names"],
    }  # fmt: skip
    for kind, options, name, chosen in settled(run):
        ours |= {kind: getattr(config, kind), options: dict(getattr(config, options))}
        theirs |= {kind: name, options: chosen}
    found = differences(json.loads(json.dumps(ours)), theirs)
    if found:
        lines = "\n".join(f"  {name}: that run has {old!r}, this one {new!r}" for name, new, old in found)
        raise RunError(
            f"{run} cannot be gone on from:\n{lines}\nGive the settings of that run, or leave --init-from out."
        )
    return Start(run, head, spec, config.peft, config.peft_option)
