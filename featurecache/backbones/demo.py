"""The tiny backbone in the package: a ViT trained on distorted glyphs, so that the first run needs no network.

Trained by `benchmarks/train_demo_backbone.py` on characters rendered from the fonts that ship with matplotlib.
"""

from __future__ import annotations

from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer

from featurecache.backbones import Backbone, BackboneOptions
from featurecache.backbones._weights import load_file_into, seed_of
from featurecache.backbones._wrapping import wrap
from featurecache.errors import BackboneError, ConfigError

WEIGHTS = Path(__file__).with_name("demo.safetensors")
ARCHITECTURE = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 128,
    "depth": 6,
    "num_heads": 4,
    "mlp_ratio": 4.0,
    "num_classes": 0,
}
PREPROCESSING = {
    "input_size": (3, 32, 32), "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
    "crop_pct": 1.0, "crop_mode": "center",
}  # fmt: skip


def build(model_id: str, *, options: BackboneOptions) -> Backbone:
    """Build the demo backbone; `model_id` must be empty, `options.weights` may be random:SEED."""
    if model_id:
        raise BackboneError(f"demo is one model and takes no name, got {model_id!r}")
    if options.architecture or options.image_size not in (None, 32):
        raise ConfigError(["demo takes no architecture options, and images of 32 pixels only"])
    seed = seed_of(options.weights)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed or 0)
        module = VisionTransformer(**ARCHITECTURE)
    if seed is None:
        path = WEIGHTS if options.weights is None else Path(options.weights)
        load_file_into(module, path, "demo")
    return wrap(module, name="demo", options=options, data_config=PREPROCESSING)
