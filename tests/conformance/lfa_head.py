"""The published head with the weights, features and options of a conformance file, and all that it says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featurecache.features import FeatureBatch
from featurecache.stores import FeatureStore
from heads import HEADS, HeadSpec
from heads._checkpoint import build_head, save_head
from heads._published import Published
from heads._published_lfa import theirs
from pipelines.objectives.cross_entropy import build as cross_entropy
from tests.conformance.lfa_store import Arrays, in_the_store

IMAGES = "images"
"""An array of the files that begin at images; the others begin at features."""


@dataclass(frozen=True)
class Case:
    """What the head of a file is built from and given."""

    spec: HeadSpec
    batch: FeatureBatch

    @property
    def layers(self) -> Any:
        return self.batch.arrays


def case_of(images: np.ndarray[Any, Any], constants: dict[str, torch.Tensor], labels: np.ndarray[Any, Any]) -> Case:
    """Return the case of (L, B, D) features."""
    names = [f"layers/cls/{index:02d}" for index in range(len(images))]
    classes = constants["text/eot"].shape[1]
    spec = HeadSpec(
        shapes=dict.fromkeys(names, images.shape[2:]), num_classes=classes, constants=constants
    )  # fmt: skip
    values = {name: torch.from_numpy(layer.copy()) for name, layer in zip(names, images, strict=True)}
    rows = np.arange(len(labels))
    return Case(spec, FeatureBatch(rows, [str(row) for row in rows], torch.from_numpy(labels.copy()), values))


def from_features(arrays: Arrays) -> Case:
    """Return the case of a file that begins at features; projections, which its weights replace, are zero."""
    text = arrays["text_features"]
    eot = text[:, :, None] if "Wq_img" not in arrays else text.transpose(1, 0, 2, 3)
    joint = arrays["q_image"].shape[1]
    constants = {
        "text/eot": torch.from_numpy(eot.copy()),
        "text/image_projection": torch.zeros(1, arrays["image_features"].shape[-1], joint),
        "text/projection": torch.zeros(1, eot.shape[-1], joint),
        "text/logit_scale": torch.from_numpy(arrays["logit_scale_log"].reshape(1, 1, 1).copy()),
    }
    return case_of(arrays["image_features"], constants, arrays["labels"])


def from_store(arrays: Arrays, store: FeatureStore) -> Case:
    """Return the case of what our own extraction has put into a store, from images, token ids and the weights of CLIP."""
    wanted = HEADS.load("lfa_clip").CONSTANTS
    constants = {name: torch.from_numpy(store.to_numpy(name)) for name in wanted}
    return case_of(in_the_store(store)["image_layer_features"], constants, arrays["labels"])


def head_of(arrays: Arrays, case: Case, **options: Any) -> Any:
    """Return the published head with the weights of a file, through the door for them, in eval mode."""
    ranks = [values.shape[0] for name, values in arrays.items() if name.endswith("_Q_down")]
    given = {"beta": float(arrays["beta"]), "start": "dg" if "Wq_img" not in arrays else "few-shot"}
    if ranks:
        given["rank"] = ranks[0]
    torch.manual_seed(0)
    head = build_head("lfa_clip", case.spec, {**given, **options})
    Published("lfa", tensors_of(arrays)).set("lfa_clip", head)
    return head.eval()


def tensors_of(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values.copy()) for name, values in arrays.items() if values.dtype.kind == "f"}


class Masked(nn.Module):
    """Dropout that drops what a file says."""

    def __init__(self, kept: np.ndarray[Any, Any], share: float) -> None:
        super().__init__()
        self.factor = torch.from_numpy(kept.copy()) / (1 - share)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape == self.factor.shape
        return x * self.factor


def found_by(arrays: Arrays, case: Case, folder: Path) -> Arrays:
    """Return everything that a file expects of the head, by its names."""
    head, few_shot = head_of(arrays, case), "Wq_img" in arrays
    logits = head(case.layers)
    loss = cross_entropy("classification")({"logits": logits}, case.batch).total
    loss.backward()
    seen = head.attended(case.layers)
    found = {
        "logits": logits, "loss": loss, "q_image": seen.query, "z_image": seen.image,
        "z_text_cross": seen.cross.transpose(0, 1) if few_shot else seen.cross.mean(2),
        "z_text_self": seen.own if few_shot else seen.own.mean(1),
    }  # fmt: skip
    if few_shot:
        found |= {
            "attn_image": head.attention(case.layers), "attn_text_cross": seen.cross_weights.transpose(0, 1),
            "attn_text_self": seen.own_weights,
        }  # fmt: skip
    if IMAGES in arrays:
        torch.manual_seed(0)
        start = build_head("lfa_clip", case.spec, {})
        found |= {theirs(key, few_shot): value for key, value in start.named_parameters() if "value" in key}
        found["logit_scale_log"] = head.scale.log()
    else:
        for key, value in head.named_parameters():
            if value.requires_grad:
                gradient = value.grad if few_shot or key.split(".", 2)[2] != "weight" else value.grad.T
                found[f"grad_{theirs(key, few_shot)}"] = gradient
    if "logits_cross" in arrays:
        found |= {
            "logits_cross": head_of(arrays, case, beta=1.0)(case.layers),
            "logits_self": head_of(arrays, case, beta=0.0)(case.layers),
            "logits_train_masked": masked_logits(arrays, case), "logits_adapter": adapted_logits(arrays, case, folder),
        }  # fmt: skip
    return {name: value.detach().numpy() for name, value in found.items()}


def masked_logits(arrays: Arrays, case: Case) -> torch.Tensor:
    """Return the logits of a training step that drops what the file says."""
    share = float(arrays["dropout_p"])
    head = head_of(arrays, case, dropout=share).train()
    head.image_dropout = Masked(arrays["dropout_mask_image"], share)
    head.text_dropout = Masked(arrays["dropout_mask_text"].transpose(0, 2, 1, 3), share)
    return head(case.layers)


def adapted_logits(arrays: Arrays, case: Case, folder: Path) -> torch.Tensor:
    """Return the logits behind the file's adapter, which stands in the run folder of a trained one."""
    down, up = (torch.from_numpy(arrays[f"adapter_w_{way}"]) for way in ("down", "up"))
    options = {"reduction": up.shape[0] // down.shape[0], "ratio": float(arrays["adapter_ratio"])}
    spec = HeadSpec(
        shapes={"projected": (len(up),)}, num_classes=case.spec.num_classes,
        constants={"text/embedding": torch.ones(case.spec.num_classes, 1, len(up)), "text/logit_scale": torch.ones(1, 1, 1)},
    )  # fmt: skip
    trained = build_head("clip_adapter", spec, options)
    trained.load_state_dict({"adapter.down.weight": down, "adapter.up.weight": up}, strict=False)
    (folder / "adapter").mkdir()
    save_head(folder / "adapter", trained, "clip_adapter", spec, options)
    return head_of(arrays, case, adapter=str(folder / "adapter"))(case.layers)
