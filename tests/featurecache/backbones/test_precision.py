"""Arithmetic: float32 that is float32, half precision on the CPU too, and the choice of the process left alone."""

from __future__ import annotations

import pytest
import torch

from featurecache.backbones import BackboneOptions, Request, load_backbone
from featurecache.errors import ConfigError
from tests.featurecache.backbones.second_route import images_for

SWITCHES = (torch.backends.cudnn, torch.backends.cuda.matmul)


@pytest.fixture(params=[True, False])
def allowed(request):
    """TF32 as the process has set it; set back afterwards."""
    before = [switch.allow_tf32 for switch in SWITCHES]
    for switch in SWITCHES:
        switch.allow_tf32 = request.param
    yield request.param
    for switch, value in zip(SWITCHES, before, strict=True):
        switch.allow_tf32 = value


def test_float32_is_computed_without_tf32_and_the_choice_of_the_process_stays(allowed):
    backbone = load_backbone("demo")
    seen = []
    backbone.module.register_forward_hook(lambda *_: seen.append([switch.allow_tf32 for switch in SWITCHES]))
    backbone.module.norm.register_forward_hook(lambda *_: seen.append([switch.allow_tf32 for switch in SWITCHES]))

    backbone.forward(images_for(backbone), Request())

    assert seen and all(state == [False, False] for state in seen)
    assert [switch.allow_tf32 for switch in SWITCHES] == [allowed, allowed]


def test_tf32_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match="tf32 exists on CUDA GPUs only"):
        load_backbone("demo", BackboneOptions(precision="tf32"))


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
