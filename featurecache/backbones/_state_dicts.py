"""Finding the state dict of a model in what a training script saved: which part of it, under which prefix of its names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from featurecache.backbones._checkpoint_files import read_checkpoint
from featurecache.errors import WeightsError

State = Mapping[str, Tensor]
Convert = Callable[[State], State]
"""Names of another library or of an older version -> those of the model; may raise at what it does not know."""

FIRST = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema", "teacher", "target_encoder",
    "base_encoder", "encoder_q", "online_encoder", "online_network", "state_dict", "model_state_dict", "model", "net",
    "network", "backbone", "encoder", "module", "student",
)  # fmt: skip
"""Parts of checkpoints, the one that is meant first: averaged weights before those of the last step, as timm takes them, the
teacher of DINO before its student, the encoder that MoCo trains before its momentum."""
WORDS = frozenset({
    "module", "model", "backbone", "encoder", "net", "network", "student", "teacher", "base_encoder",
    "momentum_encoder", "encoder_q", "encoder_k", "visual", "trunk", "feature_extractor", "online_encoder", "target_encoder",
    "_forward_module", "base_model", "ema_model", "averaged_model",
})  # fmt: skip
"""Prefixes that wrappers and training scripts put before the names of a model."""
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and gradient checkpointing put into names, at their beginning or inside."""
COUNTERS = "num_batches_tracked"
"""Of BatchNorm; older files lack them, and they change no feature."""
DEPTH = 4
"""Mappings inside of mappings that are looked into."""
LEAST = 0.5
"""Share of a model's names that must lie under a prefix for it to be taken off."""
ENOUGH = 0.9
"""Share of a model's names that a state dict must hold to be taken without the library's own conversion being tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A state dict in a checkpoint."""

    state: dict[str, Tensor]
    """Without the prefix."""
    part: tuple[str, ...] = ()
    """Keys of the checkpoint that lead to it."""
    prefix: str = ""
    """Dotted, as "module.model."."""
    wrappers: tuple[str, ...] = ()
    """Words of `WRAPPERS` that were taken out of the names."""
    left_out: tuple[str, ...] = ()
    """Names beside the prefix."""
    rivals: tuple[str, ...] = ()
    """Other parts of the checkpoint that hold as many names of the model."""
    matched: int = 0
    """Names of the model among those of the state dict, after the conversion."""

    outline: str = ""
    """The keys of the checkpoint, where it is more than the state dict."""

    def describe(self) -> str:
        """Return in words what is read of the file; "" where it holds nothing but the state dict."""
        said = [f"its {'.'.join(self.part)!r}"] if self.part else []
        said += [f"the names under {self.prefix!r}"] if self.prefix else []
        said += [f"names without {word!r}" for word in self.wrappers]
        said += [f"not {', '.join(map(repr, self.rivals))}, which would fit as well"] if self.rivals else []
        said += [f"not {listed(self.left_out)}"] if self.left_out else []
        return ", ".join(said)


def read_state_dict(path: Path, own: Sequence[str], convert: Convert | None = None) -> Found:
    """Return what a file of weights holds of a model whose state dict has the names `own`, wherever it lies there.

    Raises:
        WeightsError: the file cannot be read, or holds no tensors by name.
    """
    checkpoint = read_checkpoint(path)
    parts = list(_parts(checkpoint))
    if not parts:
        raise WeightsError(f"{path} holds no state dict (names with tensors): it is {_outline(checkpoint)}.")
    wanted = frozenset(name for name in own if not name.endswith(COUNTERS))
    wrappers = sorted({word for _, state in parts for name in state for word in WRAPPERS.findall(name)})
    parts = [(part, {WRAPPERS.sub("", name): value for name, value in state.items()}) for part, state in parts]
    found = [_best(part, state, wanted) for part, state in parts]
    if convert is not None and max(one.matched for one in found) < ENOUGH * len(wanted):
        found += [_best_converted(part, state, wanted, convert) for part, state in parts]
    best = max(found, key=lambda one: (one.matched, -_rank(one), len(one.state)))
    equal = {".".join(one.part) for one in found if best.matched and one.matched == best.matched} - {
        ".".join(best.part)
    }
    outline = f"a dict with the keys {listed(list(map(str, checkpoint)), 8)}" if best.part else ""
    return replace(best, rivals=(*best.rivals, *sorted(equal)), wrappers=tuple(wrappers), outline=outline)


def _parts(value: Any, part: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Yield every mapping of names to tensors, with the keys that lead to it; what else lies beside the tensors is passed over."""
    if not isinstance(value, Mapping):
        return
    tensors = {name: held for name, held in value.items() if isinstance(name, str) and isinstance(held, Tensor)}
    if tensors:
        yield part, tensors
    if len(part) < DEPTH:
        for name, held in value.items():
            if isinstance(name, str):
                yield from _parts(held, (*part, name))


def _best(part: tuple[str, ...], state: State, wanted: frozenset[str]) -> Found:
    """Return the names under the prefix that leaves most names of the model."""
    counts: Counter[str] = Counter({"": 0})
    for name in state:
        counts.update(name[:at] for at in _dots(name) if name[at:] in wanted)
    most = max(counts.values())
    if most < LEAST * len(wanted):  # a few names that end alike say nothing
        return replace(_under(part, state, ""), matched=counts[""])
    prefix, *others = sorted(
        (p for p, count in counts.items() if count == most), key=lambda p: (_rank_of(p.split(".")), len(p))
    )
    found = _under(part, state, prefix)
    beside = tuple(name for name in found.left_out if not name.startswith(tuple(others)))
    return replace(found, left_out=beside, rivals=tuple(p.rstrip(".") for p in others), matched=most)


def _best_converted(part: tuple[str, ...], state: State, wanted: frozenset[str], convert: Convert) -> Found:
    """Return the names under the prefix of wrappers after which the library's own conversion gives most names of the model."""
    prefixes, prefix = [""], ""
    while word := _shared_word(state, prefix):
        prefix += f"{word}."
        prefixes.append(prefix)
    tried = []
    for prefix in prefixes:
        found = _under(part, state, prefix)
        try:
            matched = len(wanted & convert(dict(found.state)).keys())
        except Exception:  # a conversion meets names that it was not written for; another prefix, or the refusal, tells
            continue
        tried.append(replace(found, matched=matched))
    return max(tried, key=lambda one: one.matched, default=_under(part, state, ""))


def _shared_word(state: State, prefix: str) -> str:
    """Return the word of wrappers that follows `prefix` in most of the names, or ""."""
    words = Counter(name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix))
    word, count = words.most_common(1)[0]
    return word if word in WORDS and 2 * count > words.total() else ""


def _under(part: tuple[str, ...], state: State, prefix: str) -> Found:
    """Return the names under a prefix, without it."""
    taken = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    return Found(
        state=taken, part=part, prefix=prefix, left_out=tuple(name for name in state if not name.startswith(prefix))
    )


def _dots(name: str) -> list[int]:
    """Return where the name begins, and where each of its words does."""
    return [0, *(at + 1 for at, letter in enumerate(name) if letter == ".")]


def _rank(found: Found) -> int:
    return _rank_of([*found.part, *found.prefix.split(".")])


def _rank_of(words: Sequence[str]) -> int:
    return min((FIRST.index(word) for word in words if word in FIRST), default=len(FIRST))


def _outline(value: Any) -> str:
    """Return in words what a checkpoint is."""
    if not isinstance(value, Mapping):
        return f"one object of the kind {type(value).__name__}"
    return f"a dict with the keys {listed(list(map(str, value)))}" if value else "an empty dict"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return names for a message, the first of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
