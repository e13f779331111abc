"""Multiply-adds and kept bytes are those that can be counted by hand."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from featurecache.backbones._skeletons import without_values
from featurecache.costs import blocks_of, kept_by, multiply_adds


class Net(nn.Module):
    """Two blocks of a linear map and a rectifier."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2)))
        self.head = nn.Linear(4, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(rows))


def test_a_map_that_learns_keeps_its_input_and_a_rectifier_its_output_each_once():
    net, rows = Net(), torch.zeros(8, 4)
    one = rows.numel() * 4

    kept = kept_by(net, lambda: net(rows))

    assert kept.blocks == (2 * one, one), "the input of the second block is the output of the first"
    assert kept.outside == 0 and kept.total == 3 * one


def test_what_is_frozen_keeps_only_what_the_gradient_must_pass():
    net, rows = Net().requires_grad_(False), torch.zeros(8, 4)
    net.blocks[1].requires_grad_(True)

    assert kept_by(net, lambda: net(rows)).blocks == (0, 2 * rows.numel() * 4)


def test_what_hooks_add_to_a_block_is_counted_outside():
    net, rows = Net().requires_grad_(False), torch.zeros(8, 4)
    extra = nn.Linear(4, 4)
    net.blocks[0].register_forward_hook(lambda _, given, out: out + extra(given[0]))

    kept = kept_by(net, lambda: net(rows))

    assert kept.blocks[0] == 0 and kept.outside == rows.numel() * 4 and kept.blocks[1] > 0


def test_nothing_is_left_on_a_model_that_failed():
    net = Net()

    with pytest.raises(RuntimeError):
        kept_by(net, lambda: net(torch.zeros(8, 3)))

    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


@pytest.mark.parametrize(("name", "count"), [("test_vit", 6), ("test_resnet", 4), ("swin_tiny_patch4_window7_224", 12)])
def test_the_blocks_of_a_model_are_found(name, count):
    with without_values():
        module = timm.create_model(name)

    assert len(blocks_of(module)) == count


def test_a_vit_b_has_17_5_giga_multiply_adds():
    with without_values():
        module = timm.create_model("vit_base_patch16_224", num_classes=0).eval()

    found = multiply_adds(lambda: module(torch.empty(1, 3, 224, 224, device="meta")))

    tokens, width = 197, 768
    products = 196 * 3 * 256 * width + 12 * (12 * tokens * width**2 + 2 * tokens**2 * width)
    assert found == products
    assert found / 1e9 == pytest.approx(17.5, abs=0.1)
