"""How a run ends in words: how its head came to its values, and how many parameters there are and were trainable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from heads import HEADS

if TYPE_CHECKING:
    from torch import nn

Record = Mapping[str, Any]
UNTRAINED = "no parameter was trained"
"""What is said of a head that names no other way to its values."""


def describe_training(record: Record) -> str:
    """Return how the values of a run were found, such as "closed form" or "best at epoch 3 of 10"."""
    if not record["trained_parameters"]:
        name = str(record["head"])
        return (HEADS.constant(name, "FITTED") if name in HEADS.names() else "") or UNTRAINED
    if not record["epochs"]:
        return f"{'closed-form start' if record.get('closed_form') else 'initial values'}, 0 epochs of training"
    return f"best at epoch {record['best_epoch']} of {record['epochs']}"


def describe_parameters(record: Record) -> str:
    """Return the parameters of backbone and head, and how many of them were trainable."""
    head, trainable = record["parameters"], record["trained_parameters"]
    of_backbone, backbone = record.get("trained_backbone_parameters", 0), record.get("backbone_parameters")
    if backbone is None:
        frozen = (
            "the teachers are"
            if record.get("teachers")
            else f"the backbone {record['features']['backbone']['name']} is"
        )
        return f"head of {head:,} parameters, {trainable:,} of them trainable; {frozen} frozen"
    frozen = "" if of_backbone else ", the backbone is frozen"
    return f"{backbone + head:,} parameters (backbone {backbone:,} + head {head:,}), {trainable:,} of them trainable{frozen}"


def describe_split(split: str, record: Record) -> str:
    """Return how a table names a split of a run: of values that are no test it says so, of a test from where its rows are."""
    if split == "val" and "test" not in record["metrics"]:
        return "val (chosen on: no test)"
    measured = record.get("splits", {}).get("test", split)
    return split if split != "test" or measured == "test" else f"test ({measured})"


def describe_selection(record: Record) -> list[str]:
    """Return the lines that say which values of a run are no measure of new data, and how its splits were read."""
    measured = record["metrics"]
    found = [record["splits"]["remark"]] if "splits" in record else []
    if "val" in measured and (record["trained_parameters"] or "sweep" in record):
        rest = "test was only measured" if "test" in measured else "nothing here measures new data"
        found.append(f"what is kept was chosen on val, so the values of val flatter; {rest}")
    return found


def count_parameters(backbone: nn.Module) -> int:
    """Return how many parameters make the features: all but those of the classifier that the backbone came with."""
    classifier = getattr(backbone, "get_classifier", lambda: ())()
    parts = classifier if isinstance(classifier, (list, tuple)) else [classifier]
    unused = {id(values) for part in parts if part is not None for values in part.parameters()}
    return sum(values.numel() for values in backbone.parameters() if id(values) not in unused)
