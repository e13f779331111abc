"""The head of CLIP in the PEFT study (its section 6): projection and classes start at zero-shot, and both learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from heads import HeadSpec
from heads._checkpoint import build_head
from tests.conformance.recorded import Arrays

HEAD_INPUTS = {"prompt_embeddings", "logit_scale_log", "visual_proj", "features", "labels"}
NAMED = {"0.linear.weight": "weight", "1.weight": "class_weight", "1.bias": "class_bias"}
"""Published name -> ours; the projection lies the other way round here."""


def head_found(arrays: Arrays) -> dict[str, Any]:
    """Return what the file expects of the head."""
    features = torch.from_numpy(arrays["features"]).requires_grad_(True)
    constants = {
        "text/embedding": torch.from_numpy(arrays["prompt_embeddings"]),
        "text/image_projection": torch.from_numpy(arrays["visual_proj"])[None],
        "text/logit_scale": torch.from_numpy(arrays["logit_scale_log"]).reshape(1, 1),
    }
    spec = HeadSpec(
        shapes={"layers/cls/11": (features.shape[1],)}, num_classes=len(arrays["prompt_embeddings"]),
        task="classification", combine="last", constants=constants,
    )  # fmt: skip
    head = build_head("clip_projection", spec, {"train_classes": True, "dropout": 0.0})
    logits = head({"layers/cls/11": features})
    loss = F.cross_entropy(logits, torch.from_numpy(arrays["labels"]))
    loss.backward()
    own = dict(head.named_parameters())
    found = {f"grad__{name.replace('.', '__')}": own[ours].grad for name, ours in NAMED.items()}
    found["grad__0__linear__weight"] = found["grad__0__linear__weight"].T
    values = {
        "head_weight": own["class_weight"], "head_bias": own["class_bias"], "proj_weight": own["weight"].T,
        "logits": logits, "loss": loss, "grad__features": features.grad, **found,
    }  # fmt: skip
    trained = [name for name, ours in NAMED.items() if own[ours].requires_grad]
    return {name: value.detach().numpy() for name, value in values.items()} | {"trainable_names": np.array(trained)}


def altered(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the array with its last number or word another one, by more than float32 forgives."""
    other = values.copy()
    if other.dtype.kind == "U":
        other.flat[-1] = "something"
    else:
        other.flat[-1] += max(1e-3, 1e-3 * float(np.abs(values).max()))
    return other
