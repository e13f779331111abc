"""What a user of `python:` writes: functions that return a module of timm's kind, any module, a ready backbone, or nonsense."""

from __future__ import annotations

from typing import ClassVar

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from featurecache.backbones import Backbone, BackboneOptions, load_backbone


def vit(*, depth: int = 2) -> nn.Module:
    module = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=depth, num_heads=2, num_classes=5)
    module.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "crop_pct": 1.0}
    return module


class Colours(nn.Module):
    """Images to vectors, with dropout that must be off."""

    pretrained_cfg: ClassVar = {"input_size": (3, 16, 16)}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(3, width)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.map(images.mean((2, 3))))


def colours(*, width: int = 8) -> nn.Module:
    return Colours(width)


def pixels() -> nn.Module:
    return nn.Identity()


def ready() -> Backbone:
    return load_backbone("demo")


def ready_in_bf16() -> Backbone:
    return load_backbone("demo", BackboneOptions(precision="bf16"))


def nonsense() -> Tensor:
    return torch.zeros(3)


NUMBER = 3
