"""Weighted nearest neighbours, as DINO votes: the k training rows of the smallest angle, each with weight exp(cos / T).

Features of classes are first whitened by what rows of one class have in common (`heads/_within_class.py`), as far as
leave-one-out says that this helps; whiten=false and temperature=0.07 are DINO's own vote.

    share_c = sum_{i in N_k(x)} exp(cos(x, x_i) / T) [y_i = c] / sum_{i in N_k(x)} exp(cos(x, x_i) / T)
Logits are log(share), or log(share / (1 - share)) for several labels, with shares no nearer to 0 (and 1) than `FLOOR`; the
prediction of a regression is the weighted mean of the neighbours' values. The head keeps the training rows, and excludes
none of them: a training row that is asked about is its own first neighbour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.errors import ConfigError
from featurecache.features import FeatureBatch
from heads import HeadSpec
from heads._inputs import Inputs
from heads._within_class import WithinClassMetric

PAPER = "Emerging Properties in Self-Supervised Vision Transformers (2021)"
CONSUMES = "last"
LEARNING_RATE = 0.0
FORMER = {"temperature": 0.07, "whiten": False}
"""Defaults of heads that were saved without theirs."""
FITTED = "training rows kept as neighbours"

FLOOR = 1e-4
"""Least share of the vote that a class is said to have: one without a neighbour is unlikely, not impossible."""
PIECE = 1 << 23
"""Similarities that are held at a time, 32 MiB, however many rows are kept."""


class Neighbours(nn.Module):
    """The training rows, and what each votes for."""

    rows: Tensor
    """(N, D) features of length one, in float16 or float32; N = 0 until it is solved."""
    votes: Tensor
    """(N,) classes, (N, C) labels or values."""
    counts: Tensor
    """(C,) training rows of each class or label; all rows for a regression."""

    def __init__(self, spec: HeadSpec, k: int, temperature: float, dtype: torch.dtype, whiten: bool) -> None:
        super().__init__()
        self.task, self.classes, self.k, self.temperature = spec.task, spec.num_classes, k, temperature
        self.whiten = whiten and spec.task == "classification"
        self.inputs = Inputs(spec)
        self.within = WithinClassMetric(self.inputs.width)
        tail, kind = {
            "classification": ((), torch.int64),
            "multilabel": ((spec.num_classes,), torch.uint8),
            "regression": ((spec.num_classes,), torch.float32),
        }[spec.task]
        self.register_buffer("rows", torch.zeros(0, self.inputs.width, dtype=dtype))
        self.register_buffer("votes", torch.zeros(0, *tail, dtype=kind))
        self.register_buffer("counts", torch.zeros(spec.num_classes, dtype=torch.int64))

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Arrays of (B, D) -> (B, C) logits."""
        features = F.normalize(self.within(self.inputs.joined(arrays)), dim=-1)
        closeness, places = self._nearest(features)
        weights = (closeness / self.temperature).softmax(dim=-1)
        said = self.votes[places]
        if self.task == "classification":
            share = weights.new_zeros(weights.shape[0], self.classes).scatter_add(-1, said, weights)
            return share.clamp_min(FLOOR).log()
        mean = torch.einsum("bk,bkc->bc", weights, said.float())
        return mean if self.task == "regression" else mean.clamp(FLOOR, 1 - FLOOR).logit()

    def _nearest(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) directions -> (B, k) cosines of the nearest rows and their places, from pieces of the rows."""
        if torch.compiler.is_exporting():  # how many rows a piece has would fix the number of images in the graph
            near = (features @ self.rows.to(features.dtype).T).topk(min(self.k, len(self.rows)), dim=-1)
            return near.values, near.indices
        closeness = features.new_zeros(len(features), 0)
        places = torch.zeros(len(features), 0, dtype=torch.int64, device=features.device)
        step = max(self.k, PIECE // max(1, len(features)))
        for start in range(0, len(self.rows), step):
            piece = self.rows[start : start + step].to(features.dtype)
            found, at = (features @ piece.T).topk(min(self.k, len(piece)), dim=-1)
            closeness, places = torch.cat([closeness, found], -1), torch.cat([places, at + start], -1)
            closeness, kept = closeness.topk(min(self.k, closeness.shape[-1]), dim=-1)
            places = places.gather(-1, kept)
        return closeness, places

    def solve(
        self, batches: Iterable[FeatureBatch], validation: Iterable[FeatureBatch] | None = None
    ) -> dict[str, float]:
        """Keep the training rows; returns how many, for the record."""
        chosen = self.within.solve(self.inputs, batches, self.classes) if self.whiten else {}
        rows, votes = [], []
        for batch in batches:
            rows.append(F.normalize(self.within(self.inputs.joined(batch.arrays)), dim=-1).to(self.rows.dtype))
            votes.append(batch.targets.to(self.votes.dtype))
        if not rows:
            raise ConfigError(["knn needs training rows, got none"])
        self.rows, self.votes = torch.cat(rows), torch.cat(votes)
        self.counts = self._counted()
        return {**chosen, "rows": float(len(self.rows)), "neighbours": float(min(self.k, len(self.rows)))}

    def _counted(self) -> Tensor:
        if self.task == "classification":
            return torch.bincount(self.votes, minlength=self.classes)
        return self.votes.ne(0).sum(0) if self.task == "multilabel" else torch.full_like(self.counts, len(self.votes))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Make room for as many rows as were saved, which only `solve` knows; all other sizes must be this head's own."""
        for name in ("rows", "votes"):
            if prefix + name in state_dict:
                buffer = getattr(self, name)
                setattr(self, name, buffer.new_empty(len(state_dict[prefix + name]), *buffer.shape[1:]))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def build(
    spec: HeadSpec,
    *,
    k: int = 20,
    temperature: float = 0.1,
    whiten: bool = True,
    dtype: Literal["float16", "float32"] = "float16",
) -> Neighbours:
    """Return a head that asks the nearest training rows.

    Args:
        spec: what it reads and says.
        k: how many neighbours vote; DINO's number.
        temperature: T. DINO's 0.07 is made for raw features, whose angles are small; these are standardised.
        whiten: by the covariance within classes, as far as leave-one-out says; False: features as they are.
        dtype: of the rows that are kept.

    Raises:
        ConfigError: lists every option out of range.
    """
    check(
        (k > 0, f"k must be positive, got {k}"),
        (0 < temperature < math.inf, f"temperature must be positive, got {temperature}"),
    )
    return Neighbours(spec, k, temperature, torch.float16 if dtype == "float16" else torch.float32, whiten)
