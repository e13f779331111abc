"""Backbones as they are typed on a benchmark's command line, and the stores that the public flow makes of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from featurecache.backbones import load_backbone
from save_features import SaveFeaturesConfig, backbone_options
from save_features import run as extract

GRAMMAR = "NAME[=WEIGHTS][?OPTION=VALUE&transform.SETTING=VALUE], as extract-features names them"


@dataclass(frozen=True, slots=True)
class Asked:
    """One backbone, weights and all."""

    name: str
    weights: str | None
    architecture: Mapping[str, Any]
    transform: Mapping[str, Any]
    label: str
    """Short name for tables and files: the backbone, random weights and options, but no path."""

    @classmethod
    def parse(cls, text: str) -> Asked:
        """Return the backbone that `GRAMMAR` names."""
        named, _, options = text.partition("?")
        name, _, weights = named.partition("=")
        pairs = {key: yaml.safe_load(value) for key, _, value in (o.partition("=") for o in options.split("&") if o)}
        transform = {key.partition(".")[2]: value for key, value in pairs.items() if key.startswith("transform.")}
        architecture = {key: value for key, value in pairs.items() if not key.startswith("transform.")}
        drawn = [weights] if weights.startswith("random:") else []
        label = "-".join([name.partition(":")[2] or name, *drawn, *(f"{k}={v}" for k, v in architecture.items())])
        return cls(name, weights or None, architecture, transform, plain_name(label))


def plain_name(text: str) -> str:
    """Return `text` as a file name; of a path, its last part without suffixes."""
    last = text.rpartition("/")[2].partition(".")[0] if "/" in text or "." in text else text
    return re.sub(r"[^\w=-]+", "-", last)


def extracted(asked: Asked, data: str, out: Path, **settings: Any) -> Path:
    """Extract all layers of `data` unless the store is there: cls and mean tokens, logits, as far as the model has them."""
    config = SaveFeaturesConfig(
        data=data, out=out, backbone=asked.name, weights=asked.weights, backbone_option=asked.architecture,
        transform=asked.transform, extend=True, quiet=True, **settings,
    )  # fmt: skip
    backbone = load_backbone(asked.name, backbone_options(config))
    kinds = [kind for kind in ("cls", "mean") if kind in backbone.tokens]
    report = extract(replace(config, tokens="+".join(kinds) or "auto", logits=backbone.num_logits > 0))
    print("; ".join(report.tables()[0].notes), file=sys.stderr, flush=True)
    return out
