"""Attention rollout: which patches reach the class token, laid over the image, where the grid shrinks inside the model too."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from featurecache.checks import check
from featurecache.errors import BackboneError, ConfigError
from featurecache.features import parse_indices
from featurecache.fonts import quiet_fonts
from pipelines.analyses import Analysis, Subject
from pipelines.analyses._rollout import Size, likeness, mask_of, placed, rollout, shrinking, single
from pipelines.analyses._subjects import LiveSubject
from pipelines.sections import Figure, Section, drawn

__all__ = ["analyse", "likeness", "mask_of", "placed", "rollout", "shrinking", "single"]

PAPER = "Abnar & Zuidema, Quantifying Attention Flow in Transformers, ACL 2020 (arXiv:2005.00928)"
SAMPLES = 8

Kind = Literal["rollout", "attention", "likeness"]
Masks = npt.NDArray[np.float64]


def analyse(
    subjects: Sequence[Subject], ids: Sequence[str], batch_size: int, *, of: Kind = "rollout", blocks: str = "all",
    power: float = 1.0,
) -> Analysis:  # fmt: skip
    """Draw for every sample how much of each patch reaches the class token through `blocks`.

    `of=attention` shows one block alone, the last of `blocks`; `of=likeness` how like the class token each patch is at the
    end. `power` sharpens what is drawn, not what is written as values.

    Raises:
        ConfigError: blocks that a model does not have, a power that is not positive, or a store among the subjects.
        BackboneError: a model whose attention cannot be seen, has windows, or tokens on no grid.
    """
    stored = [subject.name for subject in subjects if not isinstance(subject, LiveSubject)]
    check(
        (power > 0, f"power must be positive, got {power}"),
        (not stored, f"{', '.join(stored)}: attention is not kept in stores. Name a run or a backbone, with --images"),
    )
    figures, files, values, cropped = [], {}, {}, False
    for subject in subjects:
        if isinstance(subject, LiveSubject):
            masks = np.concatenate([
                _masks(subject, ids[start : start + batch_size], of, blocks) for start in range(0, len(ids), batch_size)
            ])  # fmt: skip
            pictures = [_overlaid(subject, key, mask**power) for key, mask in zip(ids, masks, strict=True)]
            files |= {
                f"{_slug(subject.name)}-{number:03d}.png": _png(over) for number, (_, over) in enumerate(pictures)
            }
            cropped |= bool(np.isnan(masks).any())
            figures.append(_figure(subject.name, ids, pictures))
            values[subject.name] = {key: mask.tolist() for key, mask in zip(ids, masks, strict=True)}
    text = {
        "rollout": f"How much of each patch reaches the class token through blocks {blocks}; heads are averaged.",
        "attention": f"What the class token attends to in the last of blocks {blocks}; heads are averaged.",
        "likeness": "Cosine of each patch to the class token (or the mean patch) behind the last block.",
    }[of]
    border = " Where a model drops the border of its grid, nothing is drawn there." if cropped else ""
    found = {"of": of, "blocks": blocks, "masks": values}
    return Analysis(Section(title="What the model looks at", text=text + border, figures=figures, values=found), files)


def _masks(subject: LiveSubject, ids: Sequence[str], of: Kind, blocks: str) -> Masks:
    """(n, H, W) on the grid of the first block; NaN where nothing is left of it."""
    if of == "likeness":
        with torch.inference_mode():
            tokens = subject.trunk.forward_features(subject.images(ids).to(subject.backbone.device)).float().cpu()
        flat, size = likeness(tokens, subject.prefix), _size(subject, tokens.shape[1])
    else:
        maps = _named(subject.attention(ids), blocks, subject.name)
        sizes = [_size(subject, one.shape[-1]) for one in maps]
        if of == "attention":
            flat, size = single(maps[-1].double(), subject.prefix), sizes[-1]
        else:
            flow = rollout([one.double() for one in maps], sizes, prefix=subject.prefix)
            flat, size = _of_patches(flow, subject.prefix), sizes[0]
    return placed(flat.double(), size, subject.grid).numpy()


def _of_patches(flow: Tensor, prefix: int) -> Tensor:
    """(B, T, T') -> (B, N'): into the class token; in a model without one, into the mean patch."""
    return mask_of(flow, prefix) if prefix else flow.mean(1)


def _named(maps: dict[str, Tensor], blocks: str, name: str) -> list[Tensor]:
    found = list(maps.values())
    if any(one.ndim != 4 for one in found):
        raise BackboneError(f"{name} attends within windows, through which nothing can be rolled out. Name a ViT.")
    try:
        numbers = list(range(len(found))) if blocks == "all" else parse_indices(blocks)
    except ValueError as problem:
        raise ConfigError([f"blocks must be all, or indices such as 0-3, got {blocks!r}: {problem}"]) from None
    check((
        numbers[-1] < len(found) and numbers == list(range(numbers[0], numbers[-1] + 1)),
        f"blocks must be neighbours among 0-{len(found) - 1} of {name}, got {blocks!r}",
    ))  # fmt: skip
    return [found[number] for number in numbers]


def _size(subject: LiveSubject, tokens: int) -> Size:
    found = subject.size_of(tokens)
    if found is None:
        raise BackboneError(
            f"{subject.name} has a block of {tokens} tokens, which lie on no part of its grid of "
            f"{subject.grid[0]}x{subject.grid[1]} patches: its method adds tokens. Name a run of another method."
        )
    return found


Picture = npt.NDArray[np.uint8]


def _overlaid(subject: LiveSubject, sample_id: str, mask: Masks) -> tuple[Picture, Picture]:
    """Return (image as the model sees it, the same under the mask in colours), both (H, W, 3)."""
    said = subject.backbone.identity["transform"]
    mean, std = (np.reshape(said[name], (3, 1, 1)) for name in ("mean", "std"))
    image = (subject.images([sample_id])[0].cpu().numpy() * std + mean).clip(0, 1).transpose(1, 2, 0)
    low, high = np.nanmin(mask), np.nanmax(mask)
    scaled = (mask - low) / (high - low) if high > low else mask * 0
    tall, wide = (side // cells for side, cells in zip(image.shape[:2], mask.shape, strict=True))
    large = np.asarray(
        Image.fromarray(np.nan_to_num(scaled).astype(np.float32)).resize(image.shape[1::-1], Image.Resampling.BILINEAR)
    )
    there = np.kron(np.isfinite(mask), np.ones((tall, wide), bool))
    there = np.pad(there, [(0, side - own) for side, own in zip(image.shape[:2], there.shape, strict=True)])
    with quiet_fonts():
        import matplotlib

    colours = matplotlib.colormaps["jet"](large.clip(0, 1))[..., :3]
    over = np.where(there[..., None], (image + colours) / 2, image)
    return tuple((one * 255).round().astype(np.uint8) for one in (image, over))  # type: ignore[return-value]


def _png(pixels: Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


def _figure(name: str, ids: Sequence[str], pictures: Sequence[tuple[Picture, Picture]]) -> Figure:
    with quiet_fonts():
        from matplotlib.figure import Figure as New

    canvas = New(figsize=(min(14, 1.6 * len(ids)), 3.4), layout="constrained")
    axes = canvas.subplots(2, len(ids), squeeze=False)
    for column, (key, pair) in enumerate(zip(ids, pictures, strict=True)):
        for row, pixels in enumerate(pair):
            axes[row, column].imshow(pixels)
            axes[row, column].axis("off")
        axes[0, column].set_title(key[-18:], fontsize=6)
    return drawn(canvas, name)
