"""Methods of the PEFT study as its recorded numbers have them: name and options, and all that passes through a model."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from featurecache.backbones._skeletons import without_values
from featurecache.peft import Adapted, adapt
from featurecache.peft._published import published, set_published
from tests.conformance.recorded import Arrays, backbone_in, dotted, settings

PLACES = {"parallel": "parallel", "sequential_after": "after", "sequential_before": "before"}
KINDS = {"bitfit": "bitfit", "ln": "layernorm", "difffit": "difffit", "ssf": "ssf", "full": "full"}


def method_of(hp: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return (name, options) that the recorded settings stand for."""
    if hp.get("prompt", "none") != "none":  # ILA's code, which follows the papers
        name = hp["prompt"]
        count = {"queries" if name == "vqt" else "prompts": hp["prompt_len"], "class_token": True}
        return name, {**count, "dropout": 0.0 if name == "vpt_shallow" else 0.1}
    if "vpt_mode" in hp:
        return f"vpt_{hp['vpt_mode']}", {"prompts": hp["vpt_num"], "dropout": 0.1, "compat": "osu"}
    if "vqt_num" in hp:
        return "vqt", {"queries": hp["vqt_num"], "compat": "osu"}
    if "lora_bottleneck" in hp:
        return "lora", {"rank": hp["lora_bottleneck"]}
    if "fact_type" in hp:
        return f"fact_{hp['fact_type']}", {"rank": hp["fact_dim"], "scale": float(hp["fact_scaler"])}
    if "ft_mlp_module" in hp:
        return _inserted(hp)
    return next((name for key, name in KINDS.items() if key in hp), "linear"), {}


def _inserted(hp: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    kind = hp["ft_mlp_module"]
    scale = hp[f"{kind}_scaler"]
    options: dict[str, Any] = {
        "bottleneck": hp[f"{kind}_bottleneck"], "scale": "learned" if scale == "learnable_scalar" else float(scale),
    }  # fmt: skip
    if kind == "repadapter":
        return kind, {**options, "groups": hp["repadapter_group"]}
    if kind == "convpass":
        return kind, options
    attention, mlp = hp.get("ft_attn_mode", "none"), hp["ft_mlp_mode"]
    reads = "stream" if hp.get("ft_mlp_ln") == "before" else "norm"
    if (attention, mlp, reads) == ("none", "parallel", "stream"):
        return "adaptformer", options
    if mlp == "sequential_after":  # whose scale and drop path act twice there
        return "pfeiffer" if attention == "none" else "houlsby", {**options, "compat": "osu"}
    places = {"attention": PLACES.get(attention, "none"), "mlp": PLACES[mlp], "reads": reads}
    return "adapter", {**options, **places}


def family(arrays: Arrays) -> str:
    return "ila" if "hp__prompt" in arrays else "peft"


def applied(arrays: Arrays) -> Adapted:
    """Return the recorded backbone with the recorded method and all its values."""
    hp, module = settings(arrays, "hp__"), backbone_in(arrays)
    if "vpt_layer" in hp:
        depth, last = arrays["cfg__depth"].item(), hp["vpt_layer"]
        hp_blocks = {"blocks": f"{depth - last}-{depth - 1}"}
    else:
        hp_blocks = {}
    name, options = method_of(hp)
    adapted = adapt(name, module, {**options, **hp_blocks})
    set_published(adapted, family(arrays), {**dotted(arrays, "backbone__"), **dotted(arrays, "method__")})
    return adapted


class Watch:
    """What passes through a model: into its first block, out of every block with prompts still there, behind its norm."""

    def __init__(self, module: Any, arrays: Arrays) -> None:
        self.arrays, self.seen, self.clean = arrays, dict[str, Tensor](), dict[int, Tensor]()
        self.asked: dict[int, Tensor] = {}
        self.weights: list[Tensor] = []
        for i, block in enumerate(module.blocks):
            block.register_forward_hook(lambda block, given, out, i=i: self.raw(block, i, given[0], out), prepend=True)
            block.register_forward_hook(lambda _, given, out, i=i: self.clean.update({i: out}))
            block.attn.fused_attn = False
        module.blocks[0].register_forward_pre_hook(lambda _, given: self.seen.update(block0_input=given[0]))
        module.blocks[0].attn.attn_drop.register_forward_pre_hook(lambda _, given: self.weights.append(given[0]))
        module.norm.register_forward_hook(lambda _, given, out: self.seen.update(norm_out=out), prepend=True)
        self.module = module

    def raw(self, block: Any, i: int, given: Tensor, out: Tensor) -> None:
        self.seen[f"block_out__{i}"] = out
        if hasattr(block, "queries"):
            self.asked[i] = block.queries(given)

    def found(self) -> dict[str, Any]:
        """Return what was seen, with queries in front of the tokens where there are some, picked as the file says."""
        seen, depth = dict(self.seen), len(self.clean)
        for i, out in self.asked.items():
            seen[f"block_out__{i}"] = torch.cat([out, seen[f"block_out__{i}"]], 1)
        if self.asked:
            first = self.module.blocks[0].queries.values
            seen["block0_input"] = torch.cat([first.expand(len(seen["block0_input"]), -1, -1), seen["block0_input"]], 1)
        given = {"tokens_per_block": [seen[f"block_out__{i}"].shape[1] for i in range(depth)]}
        given["cls_index_in_block_out"] = [_place(seen[f"block_out__{i}"], self.clean[i][:, 0]) for i in range(depth)]
        # queries ask after the tokens have, and stand before them
        attention = torch.cat([*self.weights[1:2], self.weights[0]], 2)
        if "attention_block_0_sample0" in self.arrays:
            given["attention_block_0_sample0"] = attention[0].detach()
        for name in list(seen):
            index = self.arrays.get(name.replace("block_out", "token_index"))
            if name.startswith("block_out") and index is not None:
                seen[name] = seen[name][:, torch.from_numpy(index)]
        return {**seen, **given}


def _place(tokens: Tensor, wanted: Tensor) -> int:
    return int((tokens - wanted[:, None]).abs().sum((0, 2)).argmin())


def found_in(arrays: Arrays) -> dict[str, Any]:
    """Return all that one pass with gradients shows."""
    adapted, images = applied(arrays), torch.from_numpy(arrays["images"])
    module: Any = adapted.module
    watch, head = Watch(module, arrays), module.head.requires_grad_(True)
    pre_logits = adapted.embed(images)
    logits = F.linear(pre_logits, head.weight, head.bias)
    loss = F.cross_entropy(logits, torch.from_numpy(arrays["labels"]))
    loss.backward()
    gradients = {name: _gradient(p) for name, p in adapted.parameters().items()}
    named = published(adapted, family(arrays), gradients)
    named = {
        name.replace("class_token", "cls_token"): value for name, value in named.items()
    }  # the files say timm's name
    of_head = {f"head.{name}": _gradient(p) for name, p in head.named_parameters()}
    count = sum(p.numel() for p in adapted.parameters().values())
    return {
        **watch.found(), "pre_logits": pre_logits, "logits": logits, "loss": loss,
        **{"grad__" + name.replace(".", "__"): value for name, value in (named | of_head).items()},
        "trainable_names": [*named, *of_head], "trainable_count_no_head": count,
        "trainable_count": count + sum(p.numel() for p in head.parameters()),
    }  # fmt: skip


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def said(adapted: Adapted, images: Tensor) -> Tensor:
    module: Any = adapted.module
    return F.linear(adapted.embed(images), module.head.weight, module.head.bias)


@torch.no_grad()
def otherwise(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the model says in training, at another strength, folded, and without the method."""
    adapted, images = applied(arrays), torch.from_numpy(arrays["images"])
    found: dict[str, Any] = {"marker__logits": _marked(adapted, images, monkeypatch, ila=family(arrays) == "ila")}
    drops = [int(any(isinstance(m, DropPath) for m in block.modules())) for block in adapted.module.blocks]  # type: ignore[union-attr]
    found["marker__drop_path_active"] = drops
    if "hp__merge_factor_alt" in arrays:
        adapted.scale(arrays["hp__merge_factor_alt"].item())
        found["logits_merge_factor_alt"] = said(adapted, images)
        adapted.scale(1.0)
    if "logits_backbone_only" in arrays:
        found["logits_backbone_only"] = said(adapt("none", backbone_in(arrays), {}), images)
    if "merged_logits" in arrays:
        assert adapted.merge is not None
        adapted.merge()
        own = adapted.module.state_dict()
        found |= {f"merged__{name.replace('.', '__')}": own[name] for name in dotted(arrays, "merged__")}
        plain = backbone_in(arrays)
        plain.load_state_dict(own)
        found["merged_logits"] = said(adapt("none", plain, {}), images)
    return found


def _marked(adapted: Adapted, images: Tensor, monkeypatch: pytest.MonkeyPatch, *, ila: bool) -> Tensor:
    adapted.train(True)
    for part in adapted.module.modules():  # which a model that trains nothing leaves in eval mode
        part.training |= isinstance(part, DropPath)
    if ila:  # whose backbone drops behind attention and perceptron while it trains, as ours does not
        for block in adapted.module.blocks:  # type: ignore[union-attr]
            for drop in (block.attn.proj_drop, block.mlp.drop2):
                drop.p, drop.training = 0.1, True
    with monkeypatch.context() as patch:
        patch.setattr(DropPath, "forward", lambda self, x: x * 0.75 if self.training and self.drop_prob else x)
        patch.setattr(nn.Dropout, "forward", lambda self, x: x * 0.5 if self.training and self.p else x)
        logits = said(adapted, images)
    adapted.train(False)
    return logits


def cores(arrays: Arrays) -> dict[str, Any]:
    """Return every (r, r) matrix of FacT's Tucker form, as it is multiplied from the right."""
    shared: Any = applied(arrays).module.fact
    columns = range(0, shared.factors.shape[1], shared.columns)
    found = torch.stack([shared.matrices(start, shared.columns).permute(2, 0, 1) for start in columns])
    return {"fact_cores": found.detach()}


def counts(arrays: Arrays) -> dict[str, list[int]]:
    """Return the trainable values on ViT-B/16 at 224 px for the settings that the file names, heads of 100 classes too."""
    hp = settings(arrays, "hp__")
    name, options = method_of(hp)
    alone, whole = [], []
    for text in arrays["vitb16_setting"]:
        with without_values():
            module = timm.create_model("vit_base_patch16_224", num_classes=100)
        adapted = adapt(name, module, {**options, **_changes(str(text), options)})
        alone.append(sum(p.numel() for p in adapted.parameters().values()))
        whole.append(alone[-1] + 100 * (adapted.dim + 1))
    return {"vitb16_trainable_count_no_head": alone, "vitb16_trainable_count": whole}


def _changes(text: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a setting such as "n=10, last 6 layers" stands for."""
    size = next((key for key in ("rank", "bottleneck", "prompts", "queries") if key in options), "")
    numbers = re.findall(r"\b([rhn]|groups)=(\d+)", text)
    found: dict[str, Any] = {"groups" if name == "groups" else size: int(value) for name, value in numbers}
    found |= {"class_token": False} if "CLS frozen" in text else {}
    last = re.search(r"last (\d+) layers", text)
    return found | ({"blocks": f"{12 - int(last[1])}-11"} if last else {})


def everything(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return every number that a file expects."""
    found = {**found_in(arrays), **otherwise(arrays, monkeypatch)}
    found |= counts(arrays) if "vitb16_setting" in arrays else {}
    found |= cores(arrays) if "fact_cores" in arrays else {}
    return {
        name: value.detach().numpy() if isinstance(value, Tensor) else np.array(value) for name, value in found.items()
    }
