"""Heads as they are typed on a benchmark's command line, trained for a number of steps whatever the number of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from featurecache.stores import open_store
from pipelines._rows import labelled_rows
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train

GRAMMAR = "NAME[?SETTING=VALUE&...], settings as train-head names them"
LINEAR = "linear?lr=0.01"
"""At its default rate a linear probe of a few hundred rows is far from trained after 50 epochs."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One head and how it is trained."""

    name: str
    settings: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Probe:
        """Return the probe that `GRAMMAR` names."""
        name, _, options = text.partition("?")
        pairs = (option.partition("=") for option in options.split("&") if option)
        return cls(name, {key.replace("-", "_"): yaml.safe_load(value) for key, _, value in pairs})

    @property
    def label(self) -> str:
        """Short name for files."""
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.settings.items())])


def trained(probe: Probe, steps: int, *, store: Path, out: Path, **settings: Any) -> Mapping[str, Any]:
    """Train, unless the run is there, for as many epochs as make at least `steps` steps; return the record."""
    config = TrainHeadConfig(store=store, out=out, head=probe.name, quiet=True, **{**probe.settings, **settings})
    rows = len(labelled_rows(open_store(store), "train"))
    return train(replace(config, epochs=math.ceil(steps / math.ceil(rows / config.batch_size)))).record
