"""What our own extraction puts into a store from the images, token ids and weights of CLIP that a conformance file holds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import save_features
from featurecache.backbones import Backbone, BackboneOptions, load_backbone
from featurecache.datasets import ImageDataset, RowTable
from featurecache.stores import FeatureStore, open_store
from save_features import SaveFeaturesConfig, run

Arrays = dict[str, np.ndarray[Any, Any]]

WEIGHTS = "clip__"
HEAD_WIDTH = 64
"""Of CLIP's attention, in every published size."""


def read(path: Path) -> Arrays:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def state_of(arrays: Arrays) -> dict[str, torch.Tensor]:
    names = [name for name in arrays if name.startswith(WEIGHTS)]
    return {n.removeprefix(WEIGHTS).replace("__", "."): torch.from_numpy(arrays[n].copy()) for n in names}


def config_of(arrays: Arrays) -> dict[str, Any]:
    """Return open_clip's configuration of the model whose weights a file holds, from their shapes."""
    state = state_of(arrays)
    width, _, patch, _ = state["visual.conv1.weight"].shape
    words, text_width = state["token_embedding.weight"].shape
    vision_layers, text_layers = (
        len([n for n in state if n.startswith(f"{tower}transformer.") and n.endswith("ln_1.bias")])
        for tower in ("visual.", "")
    )
    return {
        "embed_dim": state["text_projection"].shape[1],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": arrays["images"].shape[-1], "patch_size": patch, "width": width, "head_width": HEAD_WIDTH,
            "layers": vision_layers,
        },
        "text_cfg": {
            "context_length": state["positional_embedding"].shape[0], "vocab_size": words, "width": text_width,
            "heads": text_width // HEAD_WIDTH, "layers": text_layers,
        },
    }  # fmt: skip


def backbone_of(arrays: Arrays, folder: Path) -> Backbone:
    """Build the model of a file by its name, with its weights from a file, as a user would."""
    (folder / "model.json").write_text(json.dumps(config_of(arrays)))
    save_file(state_of(arrays), folder / "weights.safetensors")
    options = BackboneOptions(weights=str(folder / "weights.safetensors"))
    return load_backbone(f"open_clip:{folder / 'model.json'}", options)


def given_inputs(backbone: Backbone, arrays: Arrays) -> Backbone:
    """Return a backbone that sees the file's images where a picture of that brightness is, and its ids where a text is."""
    classes, count, _ = arrays["token_ids"].shape
    ids = {f"{c} {p}": torch.from_numpy(arrays["token_ids"][c, p]) for c in range(classes) for p in range(count)}
    text: Any = dataclasses.replace(backbone.text, tokenize=lambda texts: torch.stack([ids[text] for text in texts]))
    images = torch.from_numpy(arrays["images"])
    return dataclasses.replace(backbone, text=text, transform=lambda picture: images[picture.getpixel((0, 0))[0]])


def data_of(arrays: Arrays) -> ImageDataset:
    """Return as many pictures as the file has images, the n-th of brightness n; its classes are called 0, 1 and so on."""
    count, classes = len(arrays["images"]), len(arrays["token_ids"])
    texts = {name: [""] * count for name in ("domain", "group")}
    table = RowTable(
        sample_id=[str(n) for n in range(count)], target=np.arange(count) % classes, split=["test"] * count, **texts
    )
    return ImageDataset(
        name="images", spec="images", table=table, class_names=tuple(map(str, range(classes))), task="classification",
        read=lambda row: Image.new("RGB", (1, 1), (row, row, row)), identity={"name": "images"},
    )  # fmt: skip


def store_of(arrays: Arrays, folder: Path, suffix: str = ".zarr") -> FeatureStore:
    """Return a store extracted from the file's images and token ids."""
    backbone, data = given_inputs(backbone_of(arrays, folder), arrays), data_of(arrays)
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"{{}} {p}\n" for p in range(arrays["token_ids"].shape[1])))
    config = SaveFeaturesConfig(
        data="images",
        backbone="clip",
        out=folder / f"features{suffix}",
        dtype="float32",
        prompts=str(prompts),
        quiet=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(save_features, "load_backbone", lambda name, options: backbone)
        patch.setattr(save_features, "open_dataset", lambda name, **how: data)
        run(config)
    return open_store(config.out)


def in_the_store(store: FeatureStore) -> Arrays:
    """Return the features of a store by the names of the expected arrays."""
    return {
        "image_layer_features": np.stack([store.to_numpy(f"layers/cls/{n.index:02d}") for n in store.header.layers]),
        "clip_image_embed": store.to_numpy("projected"),
        "text_layer_features": store.to_numpy("text/eot").transpose(1, 0, 2, 3),
        "clip_text_embed_first_prompt": store.to_numpy("text/embedding")[:, 0],
    }
