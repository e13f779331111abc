"""Clean pictures that are held are decoded once, and are the same pictures."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from featurecache.backbones import BackboneOptions, load_backbone
from featurecache.datasets import open_dataset
from featurecache.sources._held import HeldImages
from featurecache.sources.live import LiveImages
from tests.extraction_samples import pictures


def test_a_second_pass_decodes_nothing_and_sees_the_same(tmp_path):
    data = open_dataset(pictures(tmp_path / "animals"))
    reads: list[int] = []
    counted = dataclasses.replace(data, read=lambda row: reads.append(row) or data.read(row))
    tower = load_backbone("timm:test_vit", BackboneOptions(weights="random:0", image_size=32))
    pieces, held = [np.array([5, 1, 9]), np.array([2, 30])], HeldImages(len(data), tower.input_size)
    images = [LiveImages(tower, counted, threads=1, held=one) for one in (None, held, held)]

    passes = [[piece.clone() for piece in one.batches(pieces)] for one in images]
    more = [piece.clone() for piece in images[2].batches([np.array([9, 3]), np.array([30])])]

    assert sorted(reads) == sorted([*[5, 1, 9, 2, 30] * 2, 9, 3]), (
        "a piece of which a picture is missing is decoded whole"
    )
    for one, other, again in zip(*passes, strict=True):
        assert torch.equal(one, other) and torch.equal(one, again)
    assert torch.equal(more[0][0], passes[0][0][2]) and torch.equal(more[1][0], passes[0][1][1])
    for one in images:
        one.close()


def test_augmented_passes_are_drawn_and_not_held(tmp_path):
    data = open_dataset(pictures(tmp_path / "animals"))
    tower = load_backbone("timm:test_vit", BackboneOptions(weights="random:0", image_size=32))
    held = HeldImages(len(data), tower.input_size)
    images = LiveImages(tower, data, threads=1, augment="crop", held=held)

    drawn = [next(images.batches([np.array([5])], number)).clone() for number in (7, 8)]

    assert not torch.equal(*drawn) and not held.has(np.array([5]))
    images.close()


def test_what_would_take_too_much_is_not_held():
    held = HeldImages(10, (3, 4, 4), most=10 * 3 * 4 * 4 * 4 - 1)

    held.keep(np.array([1]), torch.zeros(1, 3, 4, 4))

    assert not held.has(np.array([1]))
