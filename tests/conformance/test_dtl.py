"""DTL and DTL+ against the recorded numbers of the original implementation, one test id for each fixture file."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn

from featurecache.backbones._skeletons import without_values
from featurecache.peft import Adapted, adapt
from featurecache.peft._published import published, set_published
from tests.conformance.recorded import FOLDER, Arrays, backbone_in, changed, dotted, kinds, read, settings, unequal

FILES = sorted(FOLDER.glob("dtl_*.npz"))
INPUTS = (
    "cfg__", "backbone__", "images", "labels", "settings", "token_index", "stage_token_index",
    "vitb16_setting", "swinb_setting", "marker__drop_path_rate",
)  # fmt: skip
INPUTS_OF_A_SETTING = ("hp__", "method__")
WHOLE = {"vitb16": "vit_base_patch16_224", "swinb": "swin_base_patch4_window7_224"}

if not FILES:
    pytest.skip(f"no dtl_*.npz in {FOLDER}; set FEATURECACHE_CONFORMANCE", allow_module_level=True)


def method_of(hp: dict[str, Any], **other: Any) -> tuple[str, dict[str, Any]]:
    """Return (name, options) that the recorded settings stand for."""
    options = {
        "rank": hp["r"], "products": hp["lora_before_blocks"], "injections": hp["add_after_blocks"], "beta": hp["beta"],
        "compat": "published", **other,
    }  # fmt: skip
    return ("dtl_plus", {**options, "kernel": hp["fusion_size"]}) if hp["fusion_size"] else ("dtl", options)


def applied(arrays: Arrays, setting: str, **other: Any) -> Adapted:
    hp = settings(arrays, f"{setting}__hp__")
    name, options = method_of(hp, **other)
    adapted = adapt(name, backbone_in(arrays), options)
    set_published(adapted, "dtl", {**dotted(arrays, "backbone__"), **dotted(arrays, f"{setting}__method__")})
    return adapted


def blocks_of(module: Any) -> list[nn.Module]:
    return (
        [block for layer in module.layers for block in layer.blocks] if hasattr(module, "layers") else [*module.blocks]
    )


class Watch:
    """What passes through a model, picked as the fixture says."""

    def __init__(self, module: Any, arrays: Arrays) -> None:
        self.module, self.arrays, self.seen, self.state = module, arrays, {}, None
        blocks, self.swin = blocks_of(module), hasattr(module, "layers")
        for i, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda _, given, i=i: self.before(i, given[0]))
            block.register_forward_hook(lambda _, given, out, i=i: self.after(i, out), prepend=True)
        if self.swin:
            for s, layer in enumerate(module.layers[1:]):
                layer.blocks[0].register_forward_pre_hook(lambda _, given, s=s: self.keep_stage(s, given[0]))
            module.layers[-1].register_forward_hook(lambda _, given, out: self.keep_stage(len(module.layers) - 1, out))
        else:
            module.fc_norm.register_forward_pre_hook(lambda _, given: self.seen.update(pooled=given[0]))
        self.last = len(blocks) - 1

    def picked(self, tokens: torch.Tensor, name: str) -> torch.Tensor:
        index = self.arrays[name] if name in self.arrays else self.arrays["token_index"]
        return (tokens.flatten(1, 2) if tokens.ndim == 4 else tokens)[:, torch.from_numpy(index)]

    def keep_stage(self, s: int, tokens: torch.Tensor) -> None:
        self.seen[f"stage_out__{s}"] = self.picked(tokens, f"stage_token_index__{s}")

    def before(self, i: int, tokens: torch.Tensor) -> None:
        state = self.module.dtl.state
        self.seen[f"block_in__{i}"] = self.picked(tokens, f"token_index__{i}")
        self.seen[f"side_state__{i}"] = self.picked(
            torch.zeros_like(tokens) if state is None else state, f"token_index__{i}"
        )
        self.seen.setdefault("block_input_requires_grad", []).append(int(tokens.requires_grad))

    def after(self, i: int, tokens: torch.Tensor) -> None:
        out = self.picked(tokens, f"token_index__{i}")
        self.seen[f"block_out__{i}" if self.swin else f"block_out__{i}_before_injection"] = out


def head_of(module: Any) -> nn.Module:
    return module.head.fc if hasattr(module, "layers") else module.head


def gradient(parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def found_in(arrays: Arrays, setting: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    adapted, images = applied(arrays, setting), torch.from_numpy(arrays["images"])
    module, head = adapted.module, head_of(adapted.module)
    head.requires_grad_(True)
    watch = Watch(module, arrays)
    pre_logits = module.forward_head(module.forward_features(images), pre_logits=True)
    logits = head(pre_logits)
    loss = F.cross_entropy(logits, torch.from_numpy(arrays["labels"]))
    loss.backward()
    seen = {
        name: value.detach().numpy() if isinstance(value, torch.Tensor) else np.array(value)
        for name, value in watch.seen.items()
    }
    found = published(adapted, "dtl", {name: gradient(p) for name, p in adapted.parameters().items()})
    unread = published(adapted, "dtl", {name: p for name, p in adapted.parameters().items() if p.grad is None})
    own = [p.numel() for p in adapted.parameters().values()]
    of_head = {name: p for name, p in module.named_parameters() if any(p is q for q in head.parameters())}
    without = sum(own)
    with torch.no_grad():
        other = applied(arrays, setting, injections="none")
        adapted.train(True)
        with monkeypatch.context() as patch:
            patch.setattr(DropPath, "forward", lambda self, x: x * 0.75 if self.training and self.drop_prob else x)
            marked = module(images).numpy()
    return {
        **seen, **{f"grad__{name.replace('.', '__')}": value for name, value in found.items()},
        **{f"grad__{name.replace('.', '__')}": p.grad for name, p in of_head.items()}, "pre_logits": pre_logits.detach().numpy(),
        "logits": logits.detach().numpy(), "loss": loss.detach().numpy(), "unused_names": [*unread],
        "trainable_names": [*found, *of_head],
        "trainable_count": without + sum(p.numel() for p in of_head.values()), "trainable_count_no_head": without,
        "marker__logits": marked, "logits_no_injection": other.module(images).detach().numpy(),
    }  # fmt: skip


def drop_paths(module: nn.Module) -> list[int]:
    return [int(any(isinstance(part, DropPath) for part in block.modules())) for block in blocks_of(module)]


def counts(arrays: Arrays) -> dict[str, list[int]]:
    """Return the trainable values on the whole models that the file names, without and with a head of 100 classes."""
    found: dict[str, list[int]] = {}
    for short, model in WHOLE.items():
        for text in arrays.get(f"{short}_setting", []):
            number = {key: int(value) for key, value in re.findall(r"\b([rk])=(\d+)", text)}
            blocks = re.search(r"([\d-]+)/([\d-]+)", text)
            options: dict[str, Any] = {"rank": number["r"], "compat": "published"}
            options |= {"products": blocks[1], "injections": blocks[2]} if blocks else {}
            options |= {"kernel": number["k"]} if "k" in number else {}
            with without_values():
                module: Any = timm.create_model(model, num_classes=100)
            adapted = adapt("dtl_plus" if "k" in number else "dtl", module, options)
            own = sum(p.numel() for p in adapted.parameters().values())
            head = sum(p.numel() for p in head_of(module).parameters())
            found.setdefault(f"{short}_trainable_count_no_head", []).append(own)
            found.setdefault(f"{short}_trainable_count", []).append(own + head)
    return found


def everything(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {**counts(arrays), "marker__drop_path_active": drop_paths(backbone_in(arrays))}
    for setting in arrays["settings"]:
        found |= {f"{setting}__{name}": value for name, value in found_in(arrays, setting, monkeypatch).items()}
    return found


def expected(arrays: Arrays) -> set[str]:
    own = tuple(f"{setting}__{start}" for setting in arrays["settings"] for start in INPUTS_OF_A_SETTING)
    return kinds(arrays, (*INPUTS, *own))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recorded_number_is_ours_and_would_be_missed(path, monkeypatch):
    arrays = read(path)

    found, names = everything(arrays, monkeypatch), expected(arrays)

    assert unequal(arrays, found, names) == []
    assert [name for name in names if not unequal({name: changed(arrays[name])}, found, [name])] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_nothing_reads_is_not_made_unless_asked_for_and_changes_nothing(path):
    arrays = read(path)
    for setting in arrays["settings"]:
        whole, images = applied(arrays, setting), torch.from_numpy(arrays["images"])
        hp = settings(arrays, f"{setting}__hp__")

        name, options = method_of(hp, compat="none")
        lean = adapt(name, backbone_in(arrays), options)
        lean.load(whole.state())

        unused = set(arrays.get(f"{setting}__unused_names", np.array([])).tolist())
        assert (
            set(published(whole, "dtl", {name: value for name, value in whole.state().items() if name in lean.kept}))
            == set(published(whole, "dtl", whole.state())) - unused
        )
        if hasattr(lean.module, "layers"):  # a ViT's head differs
            assert torch.equal(lean.module(images), whole.module(images))
