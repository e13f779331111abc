"""Arithmetic: float32 that is float32, half precision on the CPU too, and a user's own choice that stays."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from featurecache.backbones import BackboneOptions, Request, load_backbone
from tests.featurecache.backbones.second_route import images_for

TF32 = """
import torch
from featurecache.backbones import load_backbone

load_backbone("demo")
switches = torch.backends.cudnn, torch.backends.cuda.matmul
first = [switch.allow_tf32 for switch in switches]
for switch in switches:
    switch.allow_tf32 = True
load_backbone("demo")
print(first, [switch.allow_tf32 for switch in switches])
"""


def test_tf32_is_off_until_the_user_turns_it_on_and_then_stays_on():
    done = subprocess.run([sys.executable, "-c", TF32], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[False, False] [True, True]"


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_half_precision_on_the_cpu_gives_nearly_the_features_of_float32(precision, tolerance):
    exact, rough = (load_backbone("demo", BackboneOptions(precision=p)) for p in ("fp32", precision))
    images, request = images_for(exact), Request((0, 5), ("cls", "mean"))

    wanted, found = exact.forward(images, request), rough.forward(images, request)

    assert rough.layers == exact.layers and rough.dim == exact.dim
    for name, values in found.items():
        error = (values - wanted[name]).norm() / wanted[name].norm()
        assert values.dtype == torch.float32
        assert 0 < error < tolerance, (name, float(error))
