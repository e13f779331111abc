"""Weights of timm's models: its own download, a file, or a seed. Files are loaded in timm's way, but always strictly."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featurecache.backbones._weights import differing, key_list, read_state_dict, seed_of
from featurecache.errors import WeightsError

log = logging.getLogger(__name__)

Create = Callable[..., nn.Module]
"""`timm.create_model` with the name and the architecture's arguments already given."""


def with_weights(create: Create, name: str, skeleton: nn.Module, weights: str | None) -> nn.Module:
    """Return the model with the weights of its tag (None), of a file, or of "random:SEED"; no global generator moves.

    Raises:
        WeightsError: they cannot be had, or are not of the architecture of `skeleton`.
    """
    with torch.random.fork_rng(devices=[]):
        if weights is None:
            return _downloaded(create, name, skeleton)
        seed = seed_of(weights)
        if seed is None:
            return _from_file(create, name, skeleton, Path(weights))
        # seeds the generator of the CPU alone; torch.manual_seed would reach those of every GPU
        torch.random.default_generator.manual_seed(seed)
        return create(pretrained=False)


def _downloaded(create: Create, name: str, skeleton: nn.Module) -> nn.Module:
    config: dict[str, Any] = skeleton.pretrained_cfg  # type: ignore[assignment]
    place = next((str(config[key]) for key in ("hf_hub_id", "url", "file") if config.get(key)), None)
    way_out = "Give --weights FILE, or --weights random:SEED."
    if place is None:
        raise WeightsError(f"timm has no weights for {name}. {way_out}")
    where = f"https://huggingface.co/{place}" if config.get("hf_hub_id") else place
    log.info("weights of timm:%s: from %s, unless they are in the cache already", name, where)
    try:
        return create(pretrained=True)
    except Exception as error:  # each transport of the hub raises errors of its own kind
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise WeightsError(f"the weights of timm:{name} cannot be had from {where} ({reason}). {way_out}") from error


def _from_file(create: Create, name: str, skeleton: nn.Module, path: Path) -> nn.Module:
    given = read_state_dict(path)  # refuses what is unsafe or damaged, before the library reads it
    overlay = {"file": str(path), "source": None, "custom_load": False, "num_classes": skeleton.num_classes}
    try:
        with MissingKeys() as missing, _only_warnings("timm.models._helpers"):  # it names the file that the user named
            module = create(pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise WeightsError(_refusal(name, path, str(error), skeleton, set(given))) from None
    if missing.said:
        raise WeightsError(f"{path} holds only a part of the weights of timm:{name}: {'; '.join(missing.said)}")
    return module


@contextmanager
def _only_warnings(logger_name: str) -> Iterator[None]:
    logger = logging.getLogger(logger_name)
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


class MissingKeys(logging.Handler):
    """Collects what timm only logs: keys that a checkpoint lacked where the library itself loads it without strictness."""

    LOGGER = logging.getLogger("timm.models._builder")

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record about keys."""
        found = re.match(r"(Missing|Unexpected) keys \((.*)\)", record.getMessage())
        if found:
            self.said.append(f"{found[1].lower()} {key_list(found[2].split(', '))}")

    def __enter__(self) -> MissingKeys:
        self.level_before, self.passed_on = self.LOGGER.level, self.LOGGER.propagate
        self.LOGGER.setLevel(logging.INFO)
        self.LOGGER.propagate = False
        self.LOGGER.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.LOGGER.removeHandler(self)
        self.LOGGER.setLevel(self.level_before)
        self.LOGGER.propagate = self.passed_on


def _refusal(name: str, path: Path, reason: str, skeleton: nn.Module, given: set[str]) -> str:
    found = re.findall(r"size mismatch for (\S+): .*?torch\.Size\(\[(.*?)\]\).*?torch\.Size\(\[(.*?)\]\)", reason)
    missing, unexpected = (_quoted(reason, kind) for kind in ("Missing", "Unexpected"))
    if not (found or missing or unexpected):
        own = set(skeleton.state_dict())
        missing, unexpected = sorted(own - given), sorted(given - own)
    shapes = [f"{key} [{theirs}], not [{ours}]" for key, theirs, ours in found]
    advice = _advice(skeleton, [key for key, _, _ in found] + unexpected)
    listed = differing(missing, unexpected, shapes) or reason
    return f"{path} does not hold the weights of timm:{name}:\n  {listed}\nGive a file of this architecture.{advice}"


def _quoted(reason: str, kind: str) -> list[str]:
    line = next((line for line in reason.splitlines() if f"{kind} key(s)" in line), "")
    return re.findall(r'"(.*?)"', line)


def _advice(skeleton: nn.Module, wrong: list[str]) -> str:
    """Say what to do where only the classifier differs."""
    config: Any = skeleton.pretrained_cfg
    named = config.get("classifier") or ()
    heads = (named,) if isinstance(named, str) else tuple(named)
    if not heads or not wrong or not all(key.startswith(heads) for key in wrong):
        return ""
    return " Only the classifier differs: give --backbone-option num_classes=N with the classes of the file."
