"""What a step of an online training costs, for its record: multiply-adds of an image, bytes kept for the gradient of a batch."""

from __future__ import annotations

from typing import Any

import torch

from featurecache.costs import Kept, kept_by, multiply_adds
from featurecache.requests import request_of
from pipelines.online.planning import Plan

MEASURED = 2
"""Images of the pass that is measured; what is kept grows with them."""


def costs_of(plan: Plan, batch_size: int) -> dict[str, Any]:
    """Measure the backbone with its method on empty images; the values that training left are not changed.

    Returns:
        `multiply_adds` of one image forward, and of `batch_size` images at once `saved_bytes` and `saved_bytes_per_block`.
    """
    backbone, adapted = plan.backbone, plan.adapted
    arrays = {name: plan.header.array(name) for name in plan.spec.shapes}
    request = request_of(plan.header.tokens, arrays.values())
    forward = backbone.learn or backbone.forward
    images = torch.zeros(MEASURED, *backbone.input_size, device=backbone.device)
    before = adapted.state()
    with torch.random.fork_rng():
        products = multiply_adds(lambda: forward(images[:1], request))
        adapted.train(True)
        try:
            kept = kept_by(backbone.module, lambda: forward(images, request)) if adapted.trainable else Kept((), 0)
        finally:
            adapted.train(False)
            adapted.load(before)
    return {
        "multiply_adds": products, "saved_bytes": kept.total * batch_size // MEASURED,
        "saved_bytes_per_block": [size * batch_size // MEASURED for size in kept.blocks],
    }  # fmt: skip
