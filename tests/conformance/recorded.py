"""Fixtures of methods that change a backbone: reading one, the backbone in it, and comparing what is found with what is recorded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import QuickGELU
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

Arrays = dict[str, np.ndarray[Any, Any]]

FOLDER = Path(
    os.environ.get("FEATURECACHE_CONFORMANCE", Path(__file__).resolve().parents[2] / ".." / "shared" / "conformance")
)


def read(path: Path) -> Arrays:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def dotted(arrays: Arrays, start: str) -> dict[str, torch.Tensor]:
    """Return the arrays below a prefix, by the names that parameters have."""
    return {
        name.removeprefix(start).replace("__", "."): torch.from_numpy(value)
        for name, value in arrays.items() if name.startswith(start)
    }  # fmt: skip


def settings(arrays: Arrays, start: str) -> dict[str, Any]:
    return {name.removeprefix(start): value.tolist() for name, value in arrays.items() if name.startswith(start)}


def backbone_in(arrays: Arrays) -> nn.Module:
    """Return the recorded backbone with its values, in float64 and eval mode."""
    own = settings(arrays, "cfg__")
    shared = {
        "img_size": own["img_size"], "patch_size": own["patch_size"], "embed_dim": own["embed_dim"],
        "num_classes": own["num_classes"], "mlp_ratio": own["mlp_ratio"],
        "norm_layer": partial(nn.LayerNorm, eps=own["ln_eps"]),
        "drop_path_rate": float(arrays.get("marker__drop_path_rate", 0.0)),
    }  # fmt: skip
    named = {"quick_gelu": QuickGELU, "gelu": nn.GELU}
    shared |= {"init_values": own["init_values"]} if "init_values" in own else {}
    shared |= {"pre_norm": bool(own["pre_norm"])} if "pre_norm" in own else {}
    shared |= {"act_layer": named[own["act_layer"]]} if "act_layer" in own else {}
    if "depths" in own:
        stages = {"depths": tuple(own["depths"]), "num_heads": tuple(own["num_heads"])}
        module: nn.Module = SwinTransformer(window_size=own["window_size"], **stages, **shared)
    else:
        module = VisionTransformer(depth=own["depth"], num_heads=own["num_heads"], **shared)
    if isinstance(module, VisionTransformer):  # as wide as what it reads, which a method may widen
        module.head = nn.Linear(arrays["backbone__head__weight"].shape[1], own["num_classes"])
    module = module.double()
    module.load_state_dict(dotted(arrays, "backbone__"))
    return module.eval()


def kinds(arrays: Arrays, inputs: Iterable[str]) -> set[str]:
    """Return the names that are not inputs: what must be compared."""
    return {name for name in arrays if not name.startswith(tuple(inputs))}


def unequal(
    arrays: Arrays, found: Mapping[str, Any], names: Iterable[str], rtol: float = 1e-8, atol: float = 1e-9
) -> list[str]:
    """Return the names whose recorded value is not what was found: exactly for integers and text, else as float64 allows."""
    return [name for name in names if name not in found or not _same(np.asarray(found[name]), arrays[name], rtol, atol)]


def _same(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any], rtol: float, atol: float) -> bool:
    if theirs.dtype.kind in "US":
        return sorted(ours.tolist()) == sorted(filter(None, theirs.tolist()))  # "" stands for an empty list
    if ours.shape != theirs.shape:
        return False
    if theirs.dtype.kind in "iub":
        return bool((ours == theirs).all())
    return bool(np.allclose(ours, theirs, rtol=rtol, atol=atol))


def changed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the array with its last number or word another one."""
    other = values.copy()
    if values.dtype.kind in "US":
        other = other.astype(object)
        other.flat[-1] = "something.else"
        return other.astype(str)
    if not other.size:
        return np.zeros((1, *other.shape[1:]), other.dtype)
    other.flat[-1] += 1 if values.dtype.kind in "iu" else max(1e-6, 1e-6 * float(np.abs(values).max()))
    return other
