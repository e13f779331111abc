"""The features that LFA reads, against the recorded numbers of the original implementation: extracted with a backbone of open_clip, read from the store."""

import dataclasses
import json
import os
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
from featurecache.stores import open_store
from save_features import SaveFeaturesConfig, run

Arrays = dict[str, np.ndarray[Any, Any]]

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("FEATURECACHE_CONFORMANCE", REPOSITORY / ".." / "shared" / "conformance"))
FILES = sorted(FOLDER.glob("lfa_*.npz"))

NOT_YET = {
    "lfa_dg_protocol": "domain generalisation is a protocol of a later issue",
    "lfa_fewshot_lr_schedule": "the schedule belongs to the few-shot protocol of a later issue",
    "lfa_head_dg_fullrank": "the head lfa_clip is a later issue",
    "lfa_head_dg_lowrank": "the head lfa_clip is a later issue",
    "lfa_head_fewshot": "the head lfa_clip is a later issue",
}
NOT_YET_ARRAYS = {  # of a file of features: inputs and outputs of the head lfa_clip, a later issue
    *("labels", "logit_scale_log", "beta"),
    *("Wq_img", "Wk_img", "Wv_img", "Wq_txt_self", "Wk_txt_self", "Wv_txt_self", "Wk_txt_cross", "Wv_txt_cross"),
    *("attn_image", "attn_text_cross", "attn_text_self", "z_image", "q_image", "z_text_cross", "z_text_self"),
    *("logits", "loss"),
}
INPUTS = {"images", "token_ids"}
EXPECTED = {"image_layer_features", "text_layer_features", "clip_image_embed", "clip_text_embed_first_prompt"}
WEIGHTS = "clip__"
HEAD_WIDTH = 64
"""Of CLIP's attention, in every published size."""
ATOL = 1e-4

if not FILES:
    pytest.skip(
        f"no lfa_*.npz in {FOLDER}; set FEATURECACHE_CONFORMANCE to the folder of fixtures",
        allow_module_level=True,
    )

FEATURES = [path for path in FILES if path.stem not in NOT_YET]


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


def features_of(arrays: Arrays, folder: Path, suffix: str = ".zarr") -> Arrays:
    """Return what is in a store extracted from the file's images and token ids, by the names of the expected arrays."""
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
    store = open_store(config.out)
    return {
        "image_layer_features": np.stack([store.to_numpy(f"layers/cls/{n.index:02d}") for n in store.header.layers]),
        "clip_image_embed": store.to_numpy("projected"),
        "text_layer_features": store.to_numpy("text/eot").transpose(1, 0, 2, 3),
        "clip_text_embed_first_prompt": store.to_numpy("text/embedding")[:, 0],
    }


def largest_differences(arrays: Arrays, found: Arrays) -> dict[str, float]:
    assert {name: values.shape for name, values in found.items()} == {name: arrays[name].shape for name in EXPECTED}
    return {name: float(np.abs(found[name] - arrays[name]).max()) for name in EXPECTED}


def test_every_file_is_read_here_or_listed():
    assert {path.stem for path in FILES} - set(NOT_YET) == {"lfa_end_to_end_tiny_clip"}


@pytest.mark.parametrize("path", FEATURES, ids=lambda path: path.stem)
def test_every_array_is_an_input_or_compared_or_listed(path):
    names = {name for name in read(path) if not name.startswith(WEIGHTS)}

    assert names == INPUTS | EXPECTED | NOT_YET_ARRAYS


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
@pytest.mark.parametrize("path", FEATURES, ids=lambda path: path.stem)
def test_a_store_holds_the_layers_and_embeddings_of_both_towers_as_the_original_has_them(path, suffix, tmp_path):
    arrays = read(path)

    differences = largest_differences(arrays, features_of(arrays, tmp_path, suffix))

    assert {name: value for name, value in differences.items() if not value <= ATOL} == {}


@pytest.mark.parametrize("path", FEATURES, ids=lambda path: path.stem)
def test_one_changed_number_is_noticed_whatever_array_it_is_in(path, tmp_path):
    arrays = read(path)
    found = features_of(arrays, tmp_path)

    for name in EXPECTED:
        arrays[name].flat[-1] += 10 * ATOL

    assert {name for name, value in largest_differences(arrays, found).items() if value > ATOL} == EXPECTED
