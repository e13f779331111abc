"""The language of the project: layers, tokens, batches of features, and the header that says what a store holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FORMAT_VERSION = 1
"""Raise it when a reader of the old version would misread a new store; keep the old one readable."""

DTYPES: Mapping[str, str] = {"float16": "float16", "bfloat16": "uint16", "float32": "float32"}
"""Logical dtype of features -> dtype of the array on disk (bfloat16 is not a Zarr dtype)."""

OF_THE_MODEL = ("text/image_projection", "text/logit_scale", "text/projection")
"""Arrays of all classes alike, with one in the place of the classes: what brings both towers into their space, and the
logarithm of what their cosine is multiplied by. float32 whatever the store's dtype: float16 would move that factor by 0.2 %,
bfloat16 by 1.6 %."""

Task = Literal["classification", "multilabel", "regression"]


def layer_array(token: str, index: int) -> str:
    """Return the name of a layer's array, e.g. `layers/cls/03`."""
    return f"layers/{token}/{index:02d}"


def parse_layer_array(name: str) -> tuple[str, int] | None:
    """Return (token, index) of a layer's array name, or None for any other array."""
    parts = name.split("/")
    return (parts[1], int(parts[2])) if len(parts) == 3 and parts[0] == "layers" else None


def parse_indices(text: str) -> list[int]:
    """Return the ascending indices that a text such as "0,3,6-11" names.

    Raises:
        ValueError: it is not of that form; says which part, and why.
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()):
            raise ValueError(f"{part!r} is neither an index nor a span such as 6-11")
        if int(first) > int(last):
            raise ValueError(f"the span {first}-{last} runs backwards, write {last}-{first}")
        found.update(range(int(first), int(last) + 1))
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a backbone: a block of a ViT or Mixer, a stage of a CNN or Swin."""

    index: int
    """Position in the library's `forward_intermediates`, 0-based."""
    width: int
    """D of this layer."""
    norm: str
    """What was applied to its tokens: "norm", "fc_norm", or "none" (raw)."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of features: rows first, then views, then `tail`. An array of the classes is its `tail` alone."""

    name: str
    tail: tuple[int, ...]
    """Shape of one row of one view: (D,) or (G, D) or (T, D)."""
    dtype: str
    """Logical dtype: float16, bfloat16 or float32."""

    @property
    def storage_dtype(self) -> np.dtype[Any]:
        """dtype of the bytes on disk, little-endian."""
        return np.dtype(DTYPES[self.dtype]).newbyteorder("<")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of one view; of an array of the classes, all its bytes."""
        return int(np.prod(self.tail, dtype=np.int64)) * self.storage_dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBatch:
    """B rows of features with what is known of them. Arrays are torch tensors, (B, ...) each, named as in the store."""

    rows: npt.NDArray[np.int64]
    """(B,) row numbers in the data set."""
    sample_ids: Sequence[str]
    targets: Any
    """(B,) int64 class; (B, K) uint8 multi-label; (B, K) float32 regression. -1 or NaN: unlabelled."""
    arrays: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a store holds, and what made it."""

    backbone: Mapping[str, Any]
    """Identity of the features: name, architecture, activation, weights, transform, norm, precision, batch_size."""
    dataset: Mapping[str, Any]
    """Identity of the data set: name, fingerprint, split rule."""
    rows: int
    views: int
    task: Task
    class_names: tuple[str, ...]
    layers: tuple[Layer, ...]
    tokens: tuple[str, ...]
    arrays: tuple[ArraySpec, ...]
    constants: tuple[ArraySpec, ...] = ()
    """Arrays of the classes and not of rows, called `text/...`: `tail` is the whole shape, the classes third from its end,
    where those of all classes alike have one."""
    prompts: tuple[str, ...] = ()
    """Templates that the arrays of the classes speak of, in their order; {} is the class name."""
    format_version: int = FORMAT_VERSION

    def array(self, name: str) -> ArraySpec:
        """Return the spec of one array.

        Raises:
            KeyError: the store has no such array.
        """
        return {spec.name: spec for spec in self.arrays}[name]

    def constant(self, name: str) -> ArraySpec:
        """Return the spec of one array of the classes.

        Raises:
            KeyError: the store has no such array.
        """
        return {spec.name: spec for spec in self.constants}[name]

    @property
    def contents(self) -> tuple[str, ...]:
        """What stores of one identity hold more or less of, by name: arrays, those of the classes, drawn views."""
        return (*(spec.name for spec in (*self.arrays, *self.constants)), *(f"view {n}" for n in range(1, self.views)))

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` is the inverse. A header without arrays of the classes does not speak of them."""
        plain = dataclasses.asdict(self)
        return {name: value for name, value in plain.items() if value or name not in ("constants", "prompts")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Header:
        """Build a header from what `to_json` returned, possibly after a trip through JSON."""
        plain = dict(value)
        plain["class_names"] = tuple(plain["class_names"])
        plain["tokens"] = tuple(plain["tokens"])
        plain["layers"] = tuple(Layer(**layer) for layer in plain["layers"])
        for kind in ("arrays", "constants"):
            specs = plain.get(kind, ())
            plain[kind] = tuple(ArraySpec(spec["name"], tuple(spec["tail"]), spec["dtype"]) for spec in specs)
        plain["prompts"] = tuple(plain.get("prompts", ()))
        return cls(**plain)


def as_numbers(stored: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Return stored values as numbers NumPy knows: bfloat16, kept as uint16, becomes float32; others stay."""
    return (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else stored


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return (field, value in `ours`, value in `theirs`) wherever two nested identities differ, by dotted field name."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif _plain(a) != _plain(b):
            found.append((f"{prefix}{key}", a, b))
    return found


def comparable_data(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a data set the one it is: ids, labels and sizes by the fingerprint, and the rule of its splits.

    The name is only that of its folder or archive, which may be renamed; it is recorded and never compared. Of a merged store
    the same holds of every part.
    """
    kept = {key: value for key, value in identity.items() if key not in ("name", "parts")}
    parts = {"parts": [comparable_data(part) for part in identity["parts"]]} if "parts" in identity else {}
    merged = str(kept.get("fingerprint", "")).startswith("merged:")
    return {**kept, **parts, **({"fingerprint": "merged"} if merged and parts else {})}


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
