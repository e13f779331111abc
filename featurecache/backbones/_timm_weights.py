"""Weights of timm's models: its own download, a file, or a seed. Files are converted in timm's way, but always loaded strictly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from featurecache.backbones._downloading import hub, reaching
from featurecache.backbones._skeletons import without_values
from featurecache.backbones._state_dicts import COUNTERS, Found, State, listed, read_state_dict
from featurecache.backbones._weights import load_strictly, refusal, report, seed_of
from featurecache.errors import WeightsError

log = logging.getLogger(__name__)

Create = Callable[..., nn.Module]
"""`timm.create_model` with the name and the architecture's arguments already given."""

EXTRAS = frozenset({
    "mask_token", "decoder", "dino_head", "ibot_head", "projector", "projection_head", "predictor", "prototypes",
    "queue", "queue_ptr", "criterion", "loss", "loss_fn", "aux_head", "auxiliary_head",
})  # fmt: skip
"""First words of names that training by itself puts beside a model: no feature passes through them."""


FILTER_ERRORS = (RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError)
"""What timm's conversions raise at names that they were not written for."""


def with_weights(create: Create, name: str, skeleton: nn.Module, weights: str | None) -> nn.Module:
    """Return the model with the weights of its tag (None), or of "random:SEED"; no global generator moves.

    Raises:
        WeightsError: they cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        if weights is None:
            return _downloaded(create, name, skeleton)
        # seeds the generator of the CPU alone; torch.manual_seed would reach those of every GPU
        torch.random.default_generator.manual_seed(seed_of(weights) or 0)
        return create(pretrained=False)


def _downloaded(create: Create, name: str, skeleton: nn.Module) -> nn.Module:
    config: dict[str, Any] = skeleton.pretrained_cfg  # type: ignore[assignment]
    place = next((str(config[key]) for key in ("hf_hub_id", "url", "file") if config.get(key)), None)
    way_out = "Give --weights FILE, or --weights random:SEED."
    if place is None:
        raise WeightsError(f"timm has no weights for {name}. {way_out}")
    is_hub = bool(config.get("hf_hub_id"))
    where = f"{hub()}/{place}" if is_hub else place
    log.info("weights of timm:%s: from %s, unless they are in the cache already", name, where)
    with reaching(where) if "://" in where else nullcontext("") as unreachable:
        try:
            return create(pretrained=True)
        except Exception as error:  # each transport of the hub raises errors of its own kind
            reason = unreachable or f"{type(error).__name__}: {error}".splitlines()[0]
            raise WeightsError(
                f"the weights of timm:{name} cannot be had from {where} ({reason}). {way_out}"
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class FileWeights:
    """What a file holds of a model of timm."""

    path: Path
    found: Found
    num_classes: int | None
    """Of the classifier in the file, 0 where there is none; None: as many as the model has."""
    extras: frozenset[str] = frozenset()
    """Names, as the model would have them, that belong to no part of it; they are not loaded."""

    def load(self, create: Create, name: str) -> nn.Module:
        """Return the model with the values of the file; no global generator moves.

        Raises:
            WeightsError: names or shapes are not those of the model.
        """

        def loader(model: nn.Module, *, filter_fn: Any, **_: Any) -> None:
            state = _converted(filter_fn, self.found.state, model)
            kept = {key: value for key, value in state.items() if key not in self.extras}
            load_strictly(model, kept, self.path, f"timm:{name}", self.found, partial(self._advice, model))

        with torch.random.fork_rng(devices=[]), _loading(loader):
            try:
                module = create(pretrained=True, pretrained_cfg_overlay=_overlay(self.path))
            except WeightsError:
                raise
            except FILTER_ERRORS as error:
                own = create(pretrained=False).state_dict().keys()
                missing, unexpected = sorted(own - self.found.state.keys()), sorted(self.found.state.keys() - own)
                reason = f"timm's own conversion of names fails with {type(error).__name__}: {error}"
                raise WeightsError(
                    f"{refusal(self.path, f'timm:{name}', missing, unexpected, (), self.found)} ({reason})"
                ) from None
        report(self.path, self.found, *self._remarks())
        return module

    def _advice(self, model: nn.Module, wrong: Sequence[str]) -> str:
        """Say what to do where only the classifier differs."""
        if not wrong or not all(key.startswith(_beginnings(model)) for key in wrong):
            return ""
        if self.num_classes == 0:
            return " The file holds no classifier: leave --backbone-option num_classes out, and features are had without one."
        return (
            f" Only the classifier differs: give --backbone-option num_classes={self.num_classes}, the classes of the file, "
            "or leave it out."
        )

    def _remarks(self) -> Iterator[str]:
        if self.extras:
            yield f"{listed(sorted(self.extras))} left out, which the model has no use for"
        if self.num_classes == 0:
            yield "no classifier is in it, so the model has none (--backbone-option num_classes=0)"
        elif self.num_classes is not None:
            yield f"its classifier has {self.num_classes} classes, and so has the model (--backbone-option num_classes={self.num_classes})"


def read_file(create: Create, skeleton: nn.Module, path: Path) -> FileWeights:
    """Return what a file holds of the model that `create` makes and `skeleton` describes: its body, and how many classes.

    Raises:
        WeightsError: it cannot be read, or holds no tensors by name.
    """
    filters: list[Any] = []

    def convert(state: State) -> State:
        if not filters:
            filters.append(_filter_of(create, path))
        return _converted(filters[0], state, skeleton)

    own = _names(skeleton.state_dict())
    found = read_state_dict(path, list(own), convert)
    state: State = found.state
    if own.keys() != _names(state).keys():
        try:
            state = convert(state)
        except FILTER_ERRORS:  # it meets names that it was not written for: loading tells of them
            return FileWeights(path=path, found=found, num_classes=None)
    return _inspected(path, found, own, _names(state), skeleton)


def _inspected(path: Path, found: Found, own: State, state: State, skeleton: nn.Module) -> FileWeights:
    """Return what of the names in a file is no part of a model, and how many classes its classifier has."""
    head_of, missing, foreign = _beginnings(skeleton), own.keys() - state.keys(), state.keys() - own.keys()
    is_bare = bool(missing) and all(key.startswith(head_of) for key in missing)
    extras = {key for key in foreign if key.partition(".")[0] in EXTRAS or key.startswith("decoder_")}
    if is_bare:  # a projection of training by itself may lie where the classifier was
        extras |= {key for key in state if key.startswith(head_of)}
    elif not skeleton.num_classes:
        extras |= {key for key in foreign if key.startswith(head_of)}
    classes = {len(state[key]) for key in own if key.startswith(head_of) and key.endswith("weight") and key in state}
    named = classes.pop() if len(classes) == 1 else skeleton.num_classes
    count: Any = 0 if is_bare else None if named == skeleton.num_classes else named
    return FileWeights(path=path, found=found, num_classes=count, extras=frozenset(extras))


def _names(state: State) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith(COUNTERS)}


def _beginnings(model: nn.Module) -> tuple[str, ...]:
    """Return what the names of the classifier's values begin with; more than one where a model has several."""
    config: Any = model.pretrained_cfg
    named = config.get("classifier") or ()
    return tuple(f"{head}." for head in ((named,) if isinstance(named, str) else named))


def _converted(filter_fn: Any, state: State, model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict in the names of the model, by timm's own filter, and without a class for the background."""
    found: dict[str, Tensor] = dict(state)
    if filter_fn is not None:
        try:
            found = filter_fn(found, model)
        except TypeError:  # filters of older kinds take the state dict alone
            found = filter_fn(dict(state))
    config: Any = model.pretrained_cfg
    offset, own = config.get("label_offset") or 0, model.state_dict()
    for key in own if offset else ():
        if key.startswith(_beginnings(model)) and key in found and len(found[key]) == len(own[key]) + offset:
            found[key] = found[key][offset:]
    return found


def _overlay(path: Path) -> dict[str, Any]:
    return {"file": str(path), "source": None, "custom_load": False}


def _filter_of(create: Create, path: Path) -> Any:
    """Return the function by which timm brings older names to those of a model, or None."""
    filters: list[Any] = []
    with without_values(), _loading(lambda model, *, filter_fn, **_: filters.append(filter_fn)):
        create(pretrained=True, pretrained_cfg_overlay=_overlay(path))
    return filters[0] if filters else None


@contextmanager
def _loading(loader: Callable[..., None]) -> Iterator[None]:
    """Let `loader` bring the values into a model that timm builds: its own takes what it finds, and only logs the rest."""
    with patch("timm.models._builder.load_pretrained", loader):
        yield
