"""ILA against the recorded numbers of the original implementation, one test id for each fixture file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from featurecache.backbones._skeletons import without_values
from featurecache.peft import Adapted, adapt
from featurecache.peft._published import published, set_published
from featurecache.peft._published_ila import parts_there
from featurecache.peft.ila import Form, InterLayerAdapter
from tests.conformance.recorded import FOLDER, Arrays, backbone_in, changed, dotted, kinds, read, settings, unequal

FILES = sorted(path for path in FOLDER.glob("ila_*.npz"))
MODULES = [path for path in FILES if path.stem == "ila_modules"]
MODELS = [path for path in FILES if path not in MODULES]
INPUTS = (
    "cfg__", "hp__", "backbone__", "method__", "buffer__", "images", "labels", "token_index", "module_token_index",
    "vitb16_setting",
)  # fmt: skip
SKIPS = {
    "dws_near_ones_init": "sum", "dws_ones_init": "ones", "dws": "xavier", "conv": "dense", "avg_pool": "average",
}  # fmt: skip
PLACEMENTS = {"convpass": "both", "ours": "mlp", "pfeiffer": "after"}
WHOLE: dict[str, dict[str, Any]] = {
    "2 DSO after 3,7": {},
    "2 DSO after 3,7, CLS frozen": {"train_cls": False},
    "ILA modules after all 12 blocks, no down-sampling": {"down": "none", "keep": "all"},
    "2 DSO + ILA after the other 10 blocks": {"keep": "rest"},
    "2 DSO + in-block adapters": {"inside": "adapter"},
    "in-block adapters only": {"down": "none", "inside": "adapter"},
    "in-block convpass only": {"down": "none", "inside": "convpass"},
    "adapter, path convpass": {"down": "none", "inside": "adapter"},
    "convpass, path convpass": {"down": "none", "inside": "convpass"},
    "adapter, path ours": {"down": "none", "inside": "adapter", "placement": "mlp"},
    "adapter, path pfeiffer": {"down": "none", "inside": "adapter", "placement": "after"},
}  # fmt: skip
"""What the fixtures call a setting on ViT-B/16 -> our options."""

if not FILES:
    pytest.skip(f"no ila_*.npz in {FOLDER}; set FEATURECACHE_CONFORMANCE", allow_module_level=True)


def options_of(hp: dict[str, Any]) -> dict[str, Any]:
    named = {"down": hp["ila_ds_locs"], "keep": hp["ila_locs"]} if hp["ila"] else {"down": [], "keep": []}
    return {
        **{name: ",".join(map(str, numbers)) or "none" for name, numbers in named.items()},
        "rank": hp["adapter_dim"], "kernel": hp["ila_ds_kernel_size"] if hp["ila"] else hp["adapter_kernel_size"],
        "dilation": hp["ila_dilation"], "groups": hp["ila_dws_conv_groups"], "prefix_conv": hp["ila_cls_conv"],
        "norm": ",".join(hp[f"ila_norm{place}"] for place in (1, 2, 3)), "skip": SKIPS[hp["ila_ds_conv_type"]],
        "inside": hp["adapter"], "placement": PLACEMENTS[hp["adapter_path"]], "drop_path": hp["ila_sd"],
        "compat": "published",
    }  # fmt: skip


def applied(arrays: Arrays) -> Adapted:
    """Return the recorded model with the method, its values taken by their published names."""
    adapted = adapt("ila", backbone_in(arrays), options_of(settings(arrays, "hp__")))
    set_published(
        adapted, "ila", {**dotted(arrays, "backbone__"), **dotted(arrays, "method__"), **dotted(arrays, "buffer__")}
    )
    return adapted


class Watch:
    """What blocks and modules say, picked as the fixture says."""

    def __init__(self, module: Any, arrays: Arrays) -> None:
        self.arrays, self.seen, self.tokens = arrays, {}, []
        self.prefix, placed = "", {"ila_keep": 0, "ila_down": 0}
        for i, block in enumerate(module.blocks):
            own = [name for name in placed if hasattr(block, name)]
            block.register_forward_pre_hook(lambda _, given: self.tokens.append(given[0].shape[1]))
            if not own:
                block.register_forward_hook(
                    lambda _, given, out, i=i: self.keep(f"block_out__{i}", f"token_index__{i}", out)
                )
            for name in own:
                short = f"{'ila_ds' if name == 'ila_down' else 'ila'}__{placed[name]}"
                placed[name] += 1
                part = getattr(block, name)
                part.register_forward_pre_hook(
                    lambda _, given, i=i: self.keep(f"block_out__{i}", f"token_index__{i}", given[0])
                )
                part.register_forward_hook(
                    lambda _, given, out, short=short: self.keep(
                        f"module_out__{short}", f"module_token_index__{short}", out
                    )
                )
        attention = module.blocks[0].attn
        attention.fused_attn = False
        attention.attn_drop.register_forward_hook(
            lambda _, given, out: self.seen.update({f"{self.prefix}attention_block_0_sample0": out[0].detach().numpy()})
        )

    def keep(self, name: str, index: str, tokens: torch.Tensor) -> None:
        self.seen[self.prefix + name] = tokens.detach()[:, torch.from_numpy(self.arrays[index])].numpy()


def named(adapted: Adapted, values: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return values by the names of the fixtures: published ones for what was added, timm's for the class token."""
    there = published(adapted, "ila", {**adapted.state(), **values})
    chosen = dict(zip(there, adapted.state(), strict=True))
    return {
        ("cls_token" if name == "class_token" else name).replace(".", "__"): value.detach().numpy().copy()
        for name, value in there.items() if chosen[name] in values
    }  # fmt: skip


def gradients(adapted: Adapted) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in adapted.parameters().items()}


def passed(adapted: Adapted, arrays: Arrays, watch: Watch, prefix: str) -> dict[str, Any]:
    module: Any = adapted.module
    watch.prefix = prefix
    module.zero_grad()
    pre_logits = module.forward_head(module.forward_features(torch.from_numpy(arrays["images"])), pre_logits=True)
    logits = module.head(pre_logits)
    loss = F.cross_entropy(logits, torch.from_numpy(arrays["labels"]))
    loss.backward()
    found = {"pre_logits": pre_logits, "logits": logits, "loss": loss}
    return {
        **{prefix + name: value.detach().numpy() for name, value in found.items()},
        **{f"{prefix}grad__{name}": value for name, value in named(adapted, gradients(adapted)).items()},
        **{f"{prefix}grad__head__{name}": p.grad.numpy().copy() for name, p in module.head.named_parameters()},
    }


def marked(adapted: Adapted, arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Return the logits in training mode, batch norms apart, where every dropout halves."""
    adapted.train(True)
    for part in adapted.module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.eval()
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(nn.Dropout, "forward", lambda self, x: x * 0.5 if self.training and self.p else x)
        return adapted.module(torch.from_numpy(arrays["images"])).numpy()


def in_training_norms(adapted: Adapted) -> None:
    adapted.train(True)
    for part in adapted.module.modules():
        if isinstance(part, nn.Dropout):
            part.eval()


def found_in(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    adapted = applied(arrays)
    module: Any = adapted.module
    module.head.requires_grad_(True)
    watch = Watch(module, arrays)
    found = passed(adapted, arrays, watch, "")
    watch.prefix = "marker__"
    found["marker__logits"] = marked(adapted, arrays, monkeypatch)
    found["tokens_per_block"] = adapted.tokens_per_layer
    assert tuple(watch.tokens[: len(module.blocks)]) == adapted.tokens_per_layer
    adapted.train(False)
    in_training_norms(adapted)
    if any(name.startswith("train_bn__") for name in arrays):
        found |= passed(adapted, arrays, watch, "train_bn__")
        buffers = {name: value for name, value in adapted.state().items() if name not in adapted.trainable}
        found |= {f"train_bn__buffer_after__{name}": value for name, value in named(adapted, buffers).items()}
    without = sum(p.numel() for p in adapted.parameters().values())
    head = sum(p.numel() for p in module.head.parameters())
    return {
        **watch.seen, **found, **counts(arrays), "trainable_count": without + head, "trainable_count_no_head": without,
        "trainable_names": [
            *(name.replace("__", ".") for name in named(adapted, adapted.parameters())), "head.weight", "head.bias",
        ],
    }  # fmt: skip


def counts(arrays: Arrays) -> dict[str, list[int]]:
    """Return the trainable values on ViT-B/16, without and with a head of 100 classes."""
    found: dict[str, list[int]] = {"vitb16_trainable_count": [], "vitb16_trainable_count_no_head": []}
    for text in arrays.get("vitb16_setting", []):
        with without_values():
            module: Any = timm.create_model("vit_base_patch16_224", num_classes=100)
        own = sum(p.numel() for p in adapt("ila", module, WHOLE[str(text)]).parameters().values())
        found["vitb16_trainable_count_no_head"].append(own)
        found["vitb16_trainable_count"].append(own + sum(p.numel() for p in module.head.parameters()))
    return found


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_recorded_number_is_ours_and_would_be_missed(path, monkeypatch):
    arrays = read(path)
    names = kinds(arrays, INPUTS)

    found = found_in(arrays, monkeypatch)

    assert unequal(arrays, found, names) == []
    assert [name for name in names if not unequal({name: changed(arrays[name])}, found, [name])] == []


def module_of(arrays: Arrays, case: str) -> InterLayerAdapter:
    hp = settings(arrays, f"{case}__hp__")
    shared = hp["cls"] and not hp["cls_conv"]
    padded = hp.get("padding", False) or shared
    skip = SKIPS[hp["ds_conv_type"]] if hp["ds_conv"] else None
    form = Form(
        rank=int(arrays["cfg__adapter_dim"]), kernel=hp.get("kernel_size", 3), dilation=hp.get("dilation", 1),
        groups=hp["groups"], norms=tuple(hp.get(f"norm{place}", "none") for place in (1, 2, 3)),
        prefix_conv=hp["cls_conv"],
    )  # fmt: skip
    module = InterLayerAdapter(
        int(arrays["cfg__dim"]), form, prefix=int(hp["cls"]), shrinks=not padded, skip=skip,
        residual=bool(skip) or padded,
    ).double()  # fmt: skip
    given = {**dotted(arrays, f"{case}__method__"), **dotted(arrays, f"{case}__buffer__")}
    own = module.state_dict()
    module.load_state_dict(
        {name: given[there] if (there := theirs(name, given)) else value for name, value in own.items()}
    )
    assert {theirs(name, given) for name in own} - {None} == set(given)
    return module.eval()


def theirs(name: str, given: dict[str, torch.Tensor]) -> str | None:
    """Return the published name of a tensor of a module, of those that are given."""
    return next((there for there in parts_there(name) if there in given), None)


def ran(module: InterLayerAdapter, arrays: Arrays, case: str, prefix: str) -> dict[str, Any]:
    name = "x_with_cls" if module.prefix else "x_no_cls"
    tokens, side = torch.from_numpy(arrays[name]).requires_grad_(), int(arrays["cfg__grid"])
    module.zero_grad()
    out = module(tokens, (side, side))
    (out * torch.from_numpy(arrays[f"{case}__out_weight"])).sum().backward()
    found = {"out": out.detach().numpy(), "grad_x": tokens.grad.numpy()}
    given = dotted(arrays, f"{case}__method__")
    for own, parameter in module.named_parameters():
        found["grad__" + str(theirs(own, given)).replace(".", "__")] = parameter.grad.numpy().copy()
    return {f"{case}__{prefix}{key}": value for key, value in found.items()}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_single_module_gives_what_the_original_gave(path):
    arrays, found = read(path), {}
    inputs = ("cfg__", "x_", "cases", "module_setting", *(
        f"{case}__{start}" for case in arrays["cases"] for start in ("hp__", "method__", "buffer__", "out_weight")
    ))  # fmt: skip
    names = kinds(arrays, inputs)

    for case in arrays["cases"]:
        module = module_of(arrays, case)
        found |= ran(module, arrays, case, "")
        module.train()
        module.drop.eval()
        found |= ran(module, arrays, case, "train_bn__")
        found[f"{case}__param_count"] = sum(p.numel() for p in module.parameters())
        after = dotted(arrays, f"{case}__train_bn__buffer_after__")
        for own, buffer in module.named_buffers():
            found[f"{case}__train_bn__buffer_after__{str(theirs(own, after)).replace('.', '__')}"] = buffer.numpy()
    found["module_param_count"] = whole_modules(arrays["module_setting"].tolist())

    assert unequal(arrays, found, names) == []
    assert [name for name in names if not unequal({name: changed(arrays[name])}, found, [name])] == []


def whole_modules(texts: list[str]) -> list[int]:
    """Return the values of one module on ViT-B/16 for each name of the fixture."""
    found = []
    for text in texts:
        options = {"down": "none", "train_cls": False} | (
            {"keep": "0"} if text.startswith("ILA") else {"down": "0"} if text.startswith("DSO")
            else {"inside": text.removeprefix("in-block "), "placement": "mlp"}
        )  # fmt: skip
        with without_values():
            module = timm.create_model("vit_base_patch16_224", num_classes=0)
        numbers = [p.numel() for name, p in adapt("ila", module, options).parameters().items() if "blocks.0." in name]
        found.append(sum(numbers))
    return found
