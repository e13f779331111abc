"""Weights as they are asked for and loaded: a seed or a file, whose names and shapes must be those of the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from featurecache.backbones._state_dicts import COUNTERS, Convert, Found, read_state_dict
from featurecache.errors import ConfigError, WeightsError

log = logging.getLogger(__name__)

LISTED = 20
"""Keys of a state dict that a message lists before it counts the rest."""


def seed_of(weights: str | None) -> int | None:
    """Return SEED of "random:SEED", or None for a file.

    Raises:
        ConfigError: the seed is no number.
    """
    kind, _, seed = (weights or "").partition(":")
    if kind != "random":
        return None
    if not seed.isdigit():
        raise ConfigError([f"random weights need a seed, such as random:0; got {weights!r}"])
    return int(seed)


def key_list(keys: Sequence[str]) -> str:
    """Return "N: a, b, c and M more" for a message."""
    more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return f"{len(keys)}: {', '.join(keys[:LISTED])}{more}"


def weights_file(weights: str | None) -> Path | None:
    """Return the file that --weights names; None where it names none, or a seed."""
    return None if weights is None or seed_of(weights) is not None else Path(weights)


def load_file_into(module: nn.Module, path: Path, name: str, convert: Convert | None = None) -> None:
    """Load what a file holds of `module`, whatever it is wrapped in, and say what was unwrapped.

    Args:
        module: on the CPU.
        path: of safetensors, or of what `torch.save` wrote.
        name: of the model, for messages.
        convert: names of older files to those of the module.

    Raises:
        WeightsError: the file cannot be read, or holds other names and shapes.
    """
    found = read_state_dict(path, list(module.state_dict()), convert)
    load_strictly(module, found.state if convert is None else convert(found.state), path, name, found)
    report(path, found)


def report(path: Path, found: Found, *remarks: str) -> None:
    """Say in one line what is read of a file that holds more, or less, than the weights of the model."""
    read = found.describe()
    said = ([f"read {read}"] if read else []) + list(remarks)
    if said:
        log.info("weights of %s: %s", path, "; ".join(said))


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    name: str,
    found: Found | None = None,
    advise: Callable[[Sequence[str]], str] = lambda wrong: "",
) -> None:
    """Load a state dict whose names and shapes must be exactly those of `module`; counters of BatchNorm may lack.

    `advise` says what to do about the keys that are wrong, where more is known than "give another file".

    Raises:
        WeightsError: they are not; lists missing, unexpected and misshapen keys.
    """
    own = module.state_dict()
    sizes = [
        f"{key} {list(state[key].shape)}, not {list(own[key].shape)}"
        for key in own if key in state and state[key].shape != own[key].shape
    ]  # fmt: skip
    missing = sorted(key for key in own.keys() - state.keys() if not key.endswith(COUNTERS))
    unexpected = sorted(state.keys() - own.keys())
    if missing or unexpected or sizes:
        advice = advise([*missing, *unexpected, *(size.partition(" ")[0] for size in sizes)])
        raise WeightsError(refusal(path, name, missing, unexpected, sizes, found) + advice)
    module.load_state_dict(dict(state))


def refusal(
    path: Path, name: str, missing: Sequence[str], unexpected: Sequence[str], sizes: Sequence[str], found: Found | None
) -> str:
    """Return what is wrong with the keys of a file, what else the file holds, and the way out."""
    parts = differing(missing, unexpected, sizes)
    read = f"\n  read: {found.describe()}" if found and found.describe() else ""
    held = f"\n  the file is {found.outline}" if found and found.outline else ""
    return (
        f"{path} does not hold the weights of {name}:\n  {parts}{read}{held}\nGive a file of this architecture."
        f"{_advice(missing, unexpected)}"
    )


TRANSFORMERS = (
    "embeddings.",
    "encoder.layer",
    "encoder.stages.",
    "vision_model.",
    "text_model.",
    "layernorm.",
    "embedder.",
)
"""What names of Hugging Face's transformers hold, and those of timm and open_clip do not."""


def _advice(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    theirs = [key for key in unexpected if any(word in key for word in TRANSFORMERS)]
    if theirs and 2 * len(theirs) > len(unexpected):
        return (
            " These names are those of Hugging Face's transformers, which holds the same weights in another order: name the "
            "model as timm or open_clip has it and leave --weights out, such as timm:vit_small_patch14_dinov2.lvd142m for "
            "facebook/dinov2-small or open_clip:ViT-B-32-quickgelu/openai for openai/clip-vit-base-patch32. Asked for by its name on "
            "the hub (--backbone OWNER/NAME), a model is answered with the name it has here."
        )
    norms = {key.partition(".")[0] for key in (*missing, *unexpected)}
    if norms == {"norm", "fc_norm"}:
        pool = "avg" if missing[0].startswith("norm.") else "token"
        return f" Only the place of the last norm differs: give --backbone-option global_pool={pool}."
    return ""


def differing(missing: Sequence[str], unexpected: Sequence[str], sizes: Sequence[str]) -> str:
    """Return one line per way in which the keys of a state dict are wrong; empty where they are right."""
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", sizes))
    return "\n  ".join(f"{kind} {key_list(keys)}" for kind, keys in kinds if keys)
