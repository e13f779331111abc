"""Checkpoints of training scripts: whatever they are wrapped in, the same values make the same backbone, or the way out is said."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import logging
import os
import pathlib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from featurecache.backbones import BackboneOptions, Request, load_backbone
from featurecache.errors import BackboneError, WeightsError
from featurecache.requests import requested
from tests.featurecache.backbones.second_route import images_for
from tests.shared_data import VIT_TINY, needs_shared

MODEL = "test_vit"


class Config(dict[str, Any]):
    """As configurations of many libraries are."""


class History(list[float]):
    """As lists of losses of some libraries are."""


class Meter:
    def __init__(self) -> None:
        self.mean = 1.0


class Stage(enum.Enum):
    TRAINED = 1


@dataclass(slots=True)
class Slotted:
    value: int = 1


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return timm.create_model(MODEL, num_classes=10).state_dict()


@pytest.fixture(scope="module")
def body(state) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("head.")}


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def moved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return other values under the same names, which must not be taken."""
    return {name: value + 1 for name, value in state.items()}


def loaded(path: pathlib.Path, name: str = f"timm:{MODEL}", **options: Any):
    return load_backbone(name, BackboneOptions(weights=str(path), **options))


def refusal(path: pathlib.Path, name: str = f"timm:{MODEL}", **options: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        loaded(path, name, **options)
    return str(caught.value)


def written(value: Any, path: pathlib.Path, legacy: bool = False) -> pathlib.Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


WRAPPED = {
    "timm's training": lambda s: {"arch": MODEL, "state_dict": s, "args": argparse.Namespace(lr=0.1, opt="sgd")},
    "averaged, of timm": lambda s: {"state_dict": moved(s), "state_dict_ema": s, "metric": np.float64(0.5)},
    "averaged, of DeiT": lambda s: {"model": moved(s), "model_ema": under("module.", s), "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {0: {"exp_avg": s["cls_token"]}}}},
    "Lightning": lambda s: {"state_dict": {**under("model.", s), "criterion.weight": torch.ones(3)}, "callbacks": {}},
    "many GPUs'": lambda s: under("module.", s),
    "compiled": lambda s: under("_orig_mod.", s),
    "compiled on many GPUs": lambda s: {"model": under("module._orig_mod.", s)},
    "compiled block by block": lambda s: {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in s.items()},
    "sharded": lambda s: under("_fsdp_wrapped_module.", s),
    "backbone.": lambda s: under("backbone.", s),
    "encoder.": lambda s: {"net": under("encoder.", s)},
    "net.": lambda s: under("net.", s),
    "names nobody knows": lambda s: {"my_weights": {"inner": under("some.thing.", s)}},
    "DINO": lambda s: {"student": under("module.backbone.", moved(s)), "teacher": {**under("backbone.", s), "head.mlp.0.weight": torch.ones(2, 2)}},
    "MoCo v2": lambda s: {"state_dict": {**under("module.encoder_k.", moved(s)), **under("module.encoder_q.", s), "module.queue": torch.ones(3)}},
    "MoCo v3": lambda s: {"state_dict": {**under("module.base_encoder.", s), **under("module.momentum_encoder.", moved(s))}},
    "MAE": lambda s: {"model": {**s, "mask_token": torch.zeros(1, 1, 64), "decoder_embed.weight": torch.ones(4, 64)}},
    "numbers of NumPy": lambda s: {"model": s, "best": np.float32(0.5), "rows": np.int64(3), "history": np.arange(3.0), "dtype": np.dtype("float16")},
    "plain containers": lambda s: {"model": collections.OrderedDict(s), "places": {1, 2}, "counts": collections.Counter("ab"), "rest": collections.defaultdict(list, a=[1]), "queue": collections.deque([1])},
    "paths and times": lambda s: {"model": s, "out": pathlib.Path("runs"), "at": datetime.datetime(2026, 1, 1), "took": datetime.timedelta(1)},
    "a script's own classes": lambda s: {"model": s, "config": Config(lr=Config(base=0.1)), "losses": History([1.0]), "meter": Meter(), "stage": Stage.TRAINED, "slots": Slotted(), "more": types.SimpleNamespace(a=1)},
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("wrapping", WRAPPED)
def test_the_same_values_make_the_same_backbone_however_they_are_wrapped(state, tmp_path, wrapping, legacy):
    save_file(state, tmp_path / "plain.safetensors")
    plain = loaded(tmp_path / "plain.safetensors")

    backbone = loaded(written(WRAPPED[wrapping](state), tmp_path / "x.pth", legacy))

    assert all(torch.equal(value, state[name]) for name, value in backbone.module.state_dict().items())
    assert backbone.identity == plain.identity and backbone.num_logits == 10


@pytest.mark.parametrize(("wrapping", "said"), [
    ("timm's training", "read its 'state_dict'"),
    ("averaged, of timm", "read its 'state_dict_ema', not 'state_dict', which would fit as well"),
    ("averaged, of DeiT", "read its 'model_ema', the names under 'module.', not 'model'"),
    ("Lightning", "read its 'state_dict', the names under 'model.', not criterion.weight"),
    ("compiled on many GPUs", "read its 'model', the names under 'module.', names without '_orig_mod.'"),
    ("DINO", "read its 'teacher', the names under 'backbone.', not 'student', which would fit as well, not head.mlp.0.weight"),
    ("MoCo v2", "the names under 'module.encoder_q.', not 'module.encoder_k', which would fit as well, not module.queue"),
    ("MAE", "decoder_embed.weight left out, which the model has no use for"),
])  # fmt: skip
def test_what_is_unwrapped_is_said_in_one_line(state, tmp_path, caplog, wrapping, said):
    path = written(WRAPPED[wrapping](state), tmp_path / "x.pth")

    with caplog.at_level(logging.INFO, logger="featurecache"):
        loaded(path)

    start, message = caplog.messages
    assert start.startswith("loading the backbone")
    assert message.startswith(f"weights of {path}: ") and said in message


@pytest.mark.parametrize("wrapping", ["DINO", "MoCo v2", "names nobody knows", "MAE"])
def test_a_file_without_a_classifier_loads_without_one_and_says_so(body, state, tmp_path, caplog, wrapping):
    whole = loaded(written(state, tmp_path / "whole.pth"))
    save_file(body, tmp_path / "body.safetensors")

    with caplog.at_level(logging.INFO, logger="featurecache"):
        backbone = loaded(written(WRAPPED[wrapping](body), tmp_path / "x.pth"))

    assert "no classifier is in it, so the model has none (--backbone-option num_classes=0)" in caplog.text
    assert backbone.num_logits == 0
    assert backbone.identity == loaded(tmp_path / "body.safetensors").identity
    assert backbone.identity == loaded(tmp_path / "body.safetensors", architecture={"num_classes": 0}).identity
    images = images_for(backbone)
    assert torch.equal(backbone.forward(images, Request())["embedding"], whole.forward(images, Request())["embedding"])


@pytest.mark.parametrize(("name", "head"), [
    ("test_resnet", "fc."), ("test_convnext", "head.fc."), ("test_efficientnet", "classifier."), ("mixer_s32_224", "head."),
])  # fmt: skip
def test_every_kind_of_model_loads_without_its_classifier(name, head, tmp_path):
    state = timm.create_model(name).state_dict()
    save_file({key: value for key, value in state.items() if not key.startswith(head)}, tmp_path / "x.safetensors")

    backbone = loaded(tmp_path / "x.safetensors", name)

    assert backbone.num_logits == 0 and not any(key.startswith(head) for key in backbone.module.state_dict())


def test_a_projection_in_the_place_of_the_classifier_is_left_out(body, tmp_path, caplog):
    projection = {"head.0.weight": torch.ones(8, 64), "head.2.weight": torch.ones(4, 8)}

    with caplog.at_level(logging.INFO, logger="featurecache"):
        backbone = loaded(written({**body, **projection}, tmp_path / "x.pth"))

    assert backbone.num_logits == 0 and "head.0.weight, head.2.weight left out" in caplog.text


def test_a_classifier_that_is_there_can_be_left_out(state, tmp_path):
    backbone = loaded(written(state, tmp_path / "x.pth"), architecture={"num_classes": 0})

    assert backbone.num_logits == 0


def test_logits_of_a_file_without_a_classifier_are_refused_with_the_way_out(body, tmp_path):
    backbone = loaded(written(body, tmp_path / "x.pth"))

    with pytest.raises(
        BackboneError, match=r"no classifier, .* Leave --logits out, or give --weights a file .* num_classes"
    ):
        requested(backbone, "last", "auto", logits=True)


@pytest.mark.parametrize("classes", [7, 1])
def test_a_classifier_of_other_classes_is_taken_as_it_is(tmp_path, caplog, classes):
    state = timm.create_model(MODEL, num_classes=classes).state_dict()
    path = written({"state_dict": state}, tmp_path / "x.pth")

    with caplog.at_level(logging.INFO, logger="featurecache"):
        backbone = loaded(path)

    assert f"its classifier has {classes} classes, and so has the model" in caplog.text
    assert backbone.num_logits == classes
    assert backbone.identity == loaded(path, architecture={"num_classes": classes}).identity
    assert backbone.forward(images_for(backbone), Request(logits=True))["logits"].shape == (2, classes)
    origin = dict(backbone.origin)
    assert load_backbone(origin.pop("name"), BackboneOptions(**origin)).identity == backbone.identity


def test_classes_that_contradict_the_file_are_refused_with_those_of_the_file(state, body, tmp_path):
    assert "Only the classifier differs: give --backbone-option num_classes=10" in refusal(
        written(state, tmp_path / "x.pth"), architecture={"num_classes": 3}
    )
    assert "The file holds no classifier: leave --backbone-option num_classes out" in refusal(
        written(body, tmp_path / "y.pth"), architecture={"num_classes": 3}
    )


@pytest.mark.parametrize("extra", ["blocks.12.norm1.weight", "blocks.0.ls1.gamma", "patch_embed.norm.weight"])
def test_parts_that_the_model_lacks_are_refused_for_they_would_change_features(state, tmp_path, extra):
    assert f"unexpected 1: {extra}" in refusal(written({"model": {**state, extra: torch.ones(64)}}, tmp_path / "x.pth"))


def test_a_part_of_a_wrapped_state_dict_names_what_is_lacking_what_was_read_and_what_else_is_there(state, tmp_path):
    part = {name: value for name, value in state.items() if "blocks.3" not in name}

    message = refusal(written({"net": under("module.", part), "epoch": 3, "lr": 0.1}, tmp_path / "x.pth"))

    assert "missing 12: blocks.3." in message
    assert "read: its 'net', the names under 'module.'" in message
    assert "the file is a dict with the keys net, epoch, lr" in message


def test_another_place_of_the_last_norm_names_the_pooling(state, tmp_path):
    renamed = {
        name.replace("norm.", "fc_norm.", 1) if name.startswith("norm.") else name: v for name, v in state.items()
    }
    path = written(renamed, tmp_path / "x.pth")

    assert "give --backbone-option global_pool=avg" in refusal(path)
    assert loaded(path, architecture={"global_pool": "avg"}).num_logits == 10


def transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return names as Hugging Face's transformers has them."""
    changes = (("blocks.", "vit.encoder.layer."), ("patch_embed.proj", "vit.embeddings.patch_embeddings.projection"),
               ("norm.", "vit.layernorm."), ("cls_token", "vit.embeddings.cls_token"))  # fmt: skip
    renamed = {}
    for name, value in state.items():
        for ours, theirs in changes:
            name = theirs + name[len(ours) :] if name.startswith(ours) else name
        renamed[name] = value
    return renamed


def test_names_of_transformers_are_recognised_and_the_name_of_the_same_weights_is_the_way_out(state, tmp_path):
    message = refusal(written(transformers_names(state), tmp_path / "x.bin"))

    assert "vit.encoder.layer.0." in message
    assert "Hugging Face's transformers" in message and "timm:vit_small_patch14_dinov2.lvd142m" in message


def test_clip_in_names_of_transformers_is_recognised_by_open_clip_too(tmp_path):
    clip = {
        f"{tower}_model.encoder.layers.{n}.self_attn.{part}.weight": torch.ones(2, 2)
        for tower in ("text", "vision") for n in range(3) for part in ("q_proj", "k_proj")
    }  # fmt: skip
    clip |= {"vision_model.embeddings.class_embedding": torch.ones(2), "logit_scale": torch.ones(())}
    save_file(clip, tmp_path / "model.safetensors")

    for name in ("open_clip:ViT-S-32-alt", "timm:vit_tiny_patch16_224"):
        message = refusal(tmp_path / "model.safetensors", name)
        assert "text_model.encoder.layers.0" in message and "open_clip:ViT-B-32-quickgelu/openai" in message


@pytest.mark.parametrize(("name", "content", "said"), [
    ("x.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 2\n", "pointer of Git LFS .* `git lfs pull`"),
    ("x.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS .* `git lfs pull`"),
    ("x.pth", b"\n<!DOCTYPE html><html>Not found</html>", "is a web page .*/resolve/ in place of /blob/"),
    ("x.safetensors", b"<html><body>Sign in</body></html>", "is a web page"),
    ("x.pth", b"", r"is empty \(0 bytes\)"),
    ("x.safetensors", b"", r"is empty \(0 bytes\)"),
    ("x.bin", b"Entry not found", "text that begins with 'Entry not found'"),
    ("x.json", b'{"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}', "index of weights in several files"),
    ("x.pth.tar", b"\x1f\x8b\x08" + bytes(20), "is a gzip archive"),
    ("x.h5", b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    ("x.pt", bytes(range(200, 256)), "begins with the bytes c8 c9"),
])  # fmt: skip
@pytest.mark.parametrize("backbone", [f"timm:{MODEL}", "open_clip:ViT-S-32-alt", "demo"])
def test_what_is_no_file_of_weights_is_named_by_what_it_is(tmp_path, backbone, name, content, said):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(WeightsError, match=f"{name} .*{said}"):
        loaded(tmp_path / name, backbone)


def test_arrays_of_numpy_are_named(tmp_path):
    np.savez(tmp_path / "x.npz", kernel=np.ones(3))

    assert "zip archive of arrays of NumPy, as JAX models are saved (kernel.npy)" in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize("kept", [-2000, 3000])
def test_a_file_that_was_cut_off_says_its_size(state, tmp_path, kept):
    path = written(state, tmp_path / "x.pth")
    path.write_bytes(path.read_bytes()[:kept])

    assert "is damaged or cut off" in refusal(path)
    assert f"({path.stat().st_size} bytes)" in refusal(path) and "download it again" in refusal(path)


def test_safetensors_under_another_name_are_read(state, tmp_path):
    save_file(state, tmp_path / "x.pth")

    assert loaded(tmp_path / "x.pth").num_logits == 10


def test_a_folder_names_the_files_in_it(state, tmp_path):
    save_file(state, tmp_path / "model.safetensors")

    assert f"{tmp_path} is a folder, which holds model.safetensors. Give --weights one file." in refusal(tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_module_is_refused_with_what_to_save_instead(tmp_path, legacy):
    message = refusal(written(timm.create_model("test_resnet"), tmp_path / "x.pth", legacy))

    assert "holds more than tensors" in message and "save model.state_dict() alone" in message


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("function", [os.system, os.popen, eval, exec, pathlib.Path.touch, torch.load])
def test_functions_of_python_beside_the_tensors_are_refused_and_do_not_run(state, tmp_path, function, legacy):
    target = tmp_path / "ran"
    argument = target if function is pathlib.Path.touch else f"__import__('pathlib').Path({str(target)!r}).touch()"
    path = written({"state_dict": state, "args": Attack(function, argument)}, tmp_path / "x.pth", legacy)

    assert "holds more than tensors" in refusal(path)
    assert not target.exists()


def touch(place: str) -> None:
    pathlib.Path(place).touch()


@pytest.mark.parametrize("legacy", [False, True])
def test_functions_of_a_script_do_not_run_even_where_the_file_is_read(state, tmp_path, legacy):
    path = written({"state_dict": state, "args": Attack(touch, str(tmp_path / "ran"))}, tmp_path / "x.pth", legacy)

    assert loaded(path).num_logits == 10
    assert not (tmp_path / "ran").exists()


def test_a_stand_in_is_no_tensor(state, tmp_path):
    path = written({**state, "norm.weight": Attack(touch, str(tmp_path / "ran"))}, tmp_path / "x.pth")

    assert "missing 1: norm.weight" in refusal(path)
    assert not (tmp_path / "ran").exists()


@needs_shared
def test_real_weights_wrapped_as_in_training_are_the_same_backbone(tmp_path):
    plain = loaded(VIT_TINY, "vit_tiny_patch16_224")
    state = plain.module.state_dict()

    for wrapping in ("timm's training", "DINO"):
        path = written(WRAPPED[wrapping](state), tmp_path / "x.pth")
        assert loaded(path, "vit_tiny_patch16_224").identity == plain.identity
