"""What a method puts into a backbone is followed for any number of images."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from featurecache.features import ArraySpec
from featurecache.peft import adapt
from pipelines.exporting.graph import Program, traced


@pytest.mark.parametrize("method", ["vpt_deep", "vqt", "convpass"])
def test_tokens_that_a_method_adds_do_not_fix_the_number_of_images(method):
    module = timm.create_model("test_vit", img_size=32, depth=2).eval()
    adapted = adapt(method, module, {})
    backbone = SimpleNamespace(module=module, forward=lambda images, request: {"embedding": adapted.embed(images)})
    program = Program(backbone, Read(), [ArraySpec("embedding", (adapted.dim,), "float32")], ["cls"])

    found, batch = traced(program.eval(), (3, 32, 32))

    images = torch.rand(5, 3, 32, 32)
    assert batch is None
    torch.testing.assert_close(found.module()(images), program(images), rtol=1e-4, atol=1e-5)


class Read(nn.Module):
    """A head that says what it reads."""

    def forward(self, arrays):
        return arrays["embedding"]
