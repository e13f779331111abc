"""Tiny models of every kind that open_clip builds, by their configurations, and the features of their own image towers again."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.featurecache.backbones.second_route import Tokens, arrays_of

Config = dict[str, Any]

TEXT: Config = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}

VIT: Config = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": TEXT,
}
RESNET: Config = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
    "text_cfg": TEXT,
}
TIMM: Config = {
    "embed_dim": 24, "custom_text": True, "init_logit_bias": -10,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
    "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
}  # fmt: skip
COCA: Config = {
    "embed_dim": 32,
    "vision_cfg": {**VIT["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1, "vocab_size": 49408},
    "custom_text": True,
}


def changed(config: Config, **vision: Any) -> Config:
    found = copy.deepcopy(config)
    found["vision_cfg"] |= vision
    return found


def written(config: Config, folder: Path, name: str = "tiny") -> str:
    """Return the name of the backbone whose configuration is now in a file."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return f"open_clip:{path}"


def captured(modules: list[nn.Module], images: Tensor, visual: nn.Module) -> list[Tensor]:
    """Return what each of `modules` gave while the tower saw the images."""
    outputs: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda _, __, output: outputs.append(output.detach().clone())) for m in modules]
    with torch.no_grad():
        visual(images)
    for hook in hooks:
        hook.remove()
    return outputs


def vit_features(visual: Any, images: Tensor, cells: int) -> dict[str, Tensor]:
    """Return every kind of token of every block of open_clip's ViT, from the whole sequences under its final norm."""

    def split(sequence: Tensor) -> Tokens:
        normed = visual.ln_post(sequence) if visual.attn_pool is None else sequence
        return normed[:, 1:].transpose(1, 2).unflatten(2, visual.grid_size), normed[:, :1]

    with torch.no_grad():
        layers = [split(output) for output in captured(list(visual.transformer.resblocks), images, visual)]
    return arrays_of(layers, cells, has_class=True, registers=0)


def resnet_features(visual: Any, images: Tensor, cells: int) -> dict[str, Tensor]:
    """Return every kind of token of stem and stages of CLIP's ResNet."""
    stages = [visual.avgpool, visual.layer1, visual.layer2, visual.layer3, visual.layer4]
    return arrays_of([(m, None) for m in captured(stages, images, visual)], cells, has_class=False, registers=0)


def attention_pooled(visual: Any, images: Tensor) -> Tensor:
    """Return (B, D) of the attention of CLIP's ResNet before its last map, head by head as the formula has it."""
    pool, (final,) = visual.attnpool, captured([visual.layer4], images, visual)
    with torch.no_grad():
        patches = final.flatten(2).transpose(1, 2)
        tokens = torch.cat([patches.mean(1, keepdim=True), patches], 1) + pool.positional_embedding
        shape = (tokens.shape[0], tokens.shape[1], pool.num_heads, -1)
        query = pool.q_proj(tokens[:, :1]).view(shape[0], 1, *shape[2:])
        key, value = (part(tokens).view(shape) for part in (pool.k_proj, pool.v_proj))
        weights = torch.einsum("bqhd,bthd->bhqt", query, key).div(query.shape[-1] ** 0.5).softmax(-1)
        return torch.einsum("bhqt,bthd->bqhd", weights, value).flatten(1)
