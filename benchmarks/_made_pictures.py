"""Pictures that are made when they are read, and a backbone that is nearly free: what is left is the flow itself."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, Normalize, ToTensor

from featurecache.backbones import Backbone, Request
from featurecache.datasets import ImageDataset, RowTable
from featurecache.features import Layer

SIDE, WIDTH, CLASSES = 8, 3 * 8 * 8, 10


def tiny_pictures(rows: int) -> ImageDataset:
    """Return a data set of that many pictures of 8 x 8 pixels, nine tenths of them for training."""

    drawn = np.random.default_rng(0).integers(0, 256, (997, SIDE, SIDE, 3), dtype=np.uint8)

    def read(row: int) -> Image.Image:
        # every row its own picture, made of one that is there: to draw each anew would cost as much as all else
        return Image.fromarray(drawn[row % len(drawn)] + np.uint8(row // len(drawn) % 256))

    names = ["train"] * 9 + ["test"]
    table = RowTable(
        sample_id=np.array([f"class/{row:08d}.png" for row in range(rows)], np.dtypes.StringDType()),
        target=np.arange(rows) % CLASSES, split=np.resize(np.array(names, np.dtypes.StringDType()), rows),
        domain=np.full(rows, "", np.dtypes.StringDType()), group=np.full(rows, "", np.dtypes.StringDType()),
    )  # fmt: skip
    return ImageDataset(
        name="made", spec="made", table=table, class_names=tuple(map(str, range(CLASSES))), task="classification",
        read=read, identity={"fingerprint": f"made {rows}"},
    )  # fmt: skip


def tiny_backbone() -> Backbone:
    """Return a backbone whose embedding and only layer are the pixels."""

    def forward(images: Tensor, request: Request) -> dict[str, Tensor]:
        values = images.flatten(1)
        found = {"embedding": values, "layers/cls/00": values / 2}
        return {name: found[name] for name in found if name == "embedding" or request.layers}

    return Backbone(
        name="made", module=torch.nn.Identity(), input_size=(3, SIDE, SIDE), dim=WIDTH, num_logits=0,
        transform=Compose([ToTensor(), Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))]),
        layers=(Layer(0, WIDTH, "norm"),), tokens=("cls",), forward=forward, device=torch.device("cpu"),
        identity={"name": "made", "batch_size": 64}, origin={},
    )  # fmt: skip
