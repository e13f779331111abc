"""What a finished run settles for a training that starts from it: which head, and which method has trained the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurecache.registry import plain
from featurecache.runs import read_trained
from heads._checkpoint import built_as


def settled_by(run: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the head of a run and the method that it trained its backbone with, and their options, where `given` says no other.

    Raises:
        RunError: no run is there, or it never finished.
    """
    found = {}
    for kind, options, name, theirs in settled(run):
        if plain(str(given.get(kind, name))) == name:
            found |= {kind: name, options: {**theirs, **given.get(options, {})}}
    return found


def settled(run: Path) -> list[tuple[str, str, str, Mapping[str, Any]]]:
    """Return (setting, setting of its options, name, options) of the head of a run, and of its method if the backbone learnt.

    Raises:
        RunError: no run is there, it never finished, or its head cannot be read.
    """
    _, record = read_trained(run)
    found = [("head", "head_option", *built_as(run))]
    if record.get("trained_backbone_parameters"):
        found.append(("peft", "peft_option", record["peft"]["method"], record["peft"]["options"]))
    return found
