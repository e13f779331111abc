"""Twenty steps on real images with real weights: what is to learn learns, what is frozen stays to the bit, and it is of use."""

from __future__ import annotations

import copy
import zipfile
from functools import cache

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from featurecache.peft import PEFT, Adapted, adapt
from tests.shared_data import CIFAR, VIT_TINY, needs_shared

SIZE, DEPTH, EACH, STEPS, RATE = 80, 3, 1, 20, 1e-3
"""Five patches a side, of which methods that shrink the grid take four; the first blocks of the model are enough."""


@cache
def real_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Return (images, labels) of the first pictures of every class."""
    with zipfile.ZipFile(CIFAR) as archive:
        names = sorted(name for name in archive.namelist() if "train/" in name and name.endswith((".jpg", ".png")))
        classes = sorted({name.split("/")[-2] for name in names})
        chosen = [[name for name in names if name.split("/")[-2] == label][:EACH] for label in classes]
        pictures = [Image.open(archive.open(n)).convert("RGB").resize((SIZE, SIZE)) for some in chosen for n in some]
    pixels = torch.stack([torch.from_numpy(np.asarray(p).astype(np.float32)).permute(2, 0, 1) for p in pictures])
    return pixels / 127.5 - 1, torch.arange(len(classes)).repeat_interleave(EACH)


@cache
def _weighted() -> nn.Module:
    module = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, depth=DEPTH)
    state = load_file(VIT_TINY)
    own = module.state_dict()
    position = timm.layers.resample_abs_pos_embed(state["pos_embed"], [SIZE // 16, SIZE // 16])
    module.load_state_dict({**{key: value for key, value in state.items() if key in own}, "pos_embed": position})
    return module.eval()


def weighted() -> nn.Module:
    """Return a copy of the model that no method has touched."""
    return copy.deepcopy(_weighted())


def trained(name: str) -> tuple[Adapted, float]:
    """Return the method after the steps, and the loss of the last one, in training mode."""
    images, labels = real_images()
    torch.manual_seed(0)
    adapted = adapt(name, weighted(), {})
    head = nn.Linear(adapted.dim, int(labels.max()) + 1)
    with torch.no_grad():
        start = adapted.embed(images)
    mean, deviation = start.mean(0), start.std(0) + 1e-6  # as train-online standardises what a head reads
    groups = [{"params": list(head.parameters()), "lr": RATE}]
    if adapted.trainable:
        groups.append({"params": list(adapted.parameters().values()), "lr": PEFT.load(name).LEARNING_RATE})
    step = torch.optim.AdamW(groups, weight_decay=0.0)
    adapted.train(True)
    for _ in range(STEPS):
        step.zero_grad()
        loss = F.cross_entropy(head((adapted.embed(images) - mean) / deviation), labels)
        loss.backward()
        step.step()
    adapted.train(False)
    return adapted, float(loss.detach())


@cache
def baseline() -> float:
    return trained("linear")[1]


@needs_shared
@pytest.mark.parametrize("name", [name for name in PEFT.names() if name not in ("none", "linear")])
def test_all_that_learns_moves_all_else_stays_and_the_loss_falls_below_that_of_the_head_alone(name):
    start = {key: value.clone() for key, value in weighted().state_dict().items()}
    torch.manual_seed(0)
    fresh = adapt(name, weighted(), {}).state()

    adapted, loss = trained(name)
    own = adapted.module.state_dict()

    assert [key for key in adapted.trainable if torch.equal(own[key], fresh[key])] == []
    assert [key for key, value in start.items() if key not in adapted.kept and not torch.equal(own[key], value)] == []
    assert loss < baseline()
