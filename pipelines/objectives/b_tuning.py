"""B-Tuning: the student's Bayesian linear predictions follow those of the teachers, weighed by how well these explain the labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from featurecache.checks import check
from featurecache.errors import ConfigError
from featurecache.features import FeatureBatch
from featurecache.sources.joined import teacher_array
from logme import LogME, LogMEError, LogMEWarning, Moments
from pipelines.objectives import Dimensions, Material
from pipelines.objectives._distance import STUDENT, Distance

PAPER = "You et al., 2022, Ranking and Tuning Pre-trained Models (JMLR 23)"
PAIRS, OWN_RATE = False, False

Floats = npt.NDArray[np.float64]
Variant = Literal["corrected", "reference"]
WALK = 256


class BayesianTuning(Distance):
    """Mean square error between F(x) m' of the student and the mixture of the teachers', m being LogME's posterior means.

    The student's m is that of its features before training, and stays; so do the teachers', and their weights
    softmax(LogME / temperature).
    """

    own: Tensor
    shares: Tensor
    means: Tensor

    def __init__(self, dimensions: Dimensions, temperature: float, variant: Variant) -> None:
        super().__init__()
        self.dimensions, self.temperature, self.variant = dimensions, temperature, variant
        self.register_buffer("own", torch.zeros(0, dimensions.student))
        self.register_buffer("means", torch.zeros(0, sum(dimensions.teachers)))
        self.register_buffer("shares", torch.zeros(len(dimensions.teachers)))

    def prepare(self, source: Material) -> None:
        """Fit LogME to every teacher and to the student as it is before training, on the training rows.

        Raises:
            ConfigError: LogME says nothing of such rows; why.
        """
        fitted = [
            self._fitted(source.teachers["train"].walk(WALK), teacher_array(number), width)
            for number, width in enumerate(self.dimensions.teachers)
        ]
        own = self._fitted(source.student.walk(WALK), STUDENT, self.dimensions.student)
        self.set(own.weights_, [one.weights_ for one in fitted], [float(one.score_) for one in fitted])

    def _fitted(self, batches: Iterable[FeatureBatch], array: str, width: int) -> LogME:
        moments = Moments(width, self.dimensions.num_classes, task=self.dimensions.task)
        try:
            for batch in batches:
                moments.update(batch.arrays[array].detach().cpu().numpy(), batch.targets.cpu().numpy())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LogMEWarning)  # a class without training rows is no news here
                return LogME(task=self.dimensions.task, variant=self.variant).fit_moments(moments)
        except LogMEError as error:
            raise ConfigError([f"b_tuning needs LogME of {array}, which cannot be had: {error}"]) from error

    def set(self, own: Floats, means: Sequence[Floats], scores: Sequence[float]) -> None:
        """Take (K, d) of the student, (K, D) of each teacher, and the teachers' scores."""
        like = self.own
        self.own = torch.as_tensor(own).to(like)
        self.means = torch.as_tensor(np.concatenate(list(means), axis=1)).to(like)
        self.shares = (torch.tensor(list(scores), dtype=torch.float64) / self.temperature).softmax(0).to(like)

    def measure(self, features: Tensor, teachers: Sequence[Tensor]) -> Tensor:
        """(B, d), (B, D) each -> ()."""
        blocks = torch.split(self.means, list(self.dimensions.teachers), dim=1)
        said = [share * (rows @ m.T) for share, rows, m in zip(self.shares, teachers, blocks, strict=True)]
        return F.mse_loss(features @ self.own.T, torch.stack(said).sum(0))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Take tables of as many columns as they were fitted with."""
        for name in ("own", "means"):
            setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.own.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def build(dimensions: Dimensions, *, temperature: float = 0.1, variant: Variant = "corrected") -> BayesianTuning:
    """Mix the teachers by softmax(LogME / temperature); `variant` is LogME's.

    Raises:
        ConfigError: the temperature is not positive.
    """
    check((temperature > 0, f"temperature must be positive, got {temperature}"))
    return BayesianTuning(dimensions, temperature, variant)
