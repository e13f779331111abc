"""Real images and weights that lie beside the checkout; tests that need them skip, saying so, where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("FEATURECACHE_SHARED", Path(__file__).parents[2] / "shared"))
CIFAR = SHARED / "data/cifar10-5k/cifar10_5k.zip"
VIT_TINY = SHARED / "data/weights-vit-tiny/vit_tiny_patch16_224_in1k.safetensors"
MOBILENET = SHARED / "data/weights-mobilenetv2/mobilenetv2_100_in1k.safetensors"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the real images and weights of {SHARED}")
