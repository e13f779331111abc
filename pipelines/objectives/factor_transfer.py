"""Factor transfer: a translator of the student's features points where the compressed features of the teachers point."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.features import FeatureBatch
from featurecache.sources.joined import teacher_array
from pipelines.objectives import Dimensions, Material
from pipelines.objectives._distance import Distance, in_full
from pipelines.objectives._paraphrasing import paraphraser

PAPER = "Kim et al., 2018, Paraphrasing Complex Network: Network Compression via Factor Transfer (arXiv:1802.04977)"
PAIRS, OWN_RATE = False, False


class FactorTransfer(Distance):
    """Mean over the rows of the L1 distance between directions: the translated student's, and the teachers' codes, joined.

    The codes of all rows are computed once, by an autoencoder for each teacher that stops early on validation rows.
    """

    def __init__(self, dimensions: Dimensions, paraphrase: bool) -> None:
        super().__init__()
        self.paraphrase, self.widths = paraphrase, dimensions.teachers
        width = sum(size // 2 if paraphrase else size for size in dimensions.teachers)
        last = nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        self.translator = nn.Sequential(
            nn.Linear(dimensions.student, dimensions.student), nn.ReLU(),
            nn.Linear(dimensions.student, width), nn.ReLU(), last,
        )  # fmt: skip
        self.codes = torch.empty(0)
        """(N, sum of D // 2) codes by row number of the data set; no value of the objective, so that no state holds them."""

    def prepare(self, source: Material) -> None:
        """Train the autoencoders, or take those that are kept, and compute the codes of the training rows.

        Raises:
            ConfigError: there are no validation rows to stop on.
        """
        if not self.paraphrase:
            return
        found = [paraphraser(source, number, width) for number, width in enumerate(self.widths)]
        rows, codes = [], []
        with torch.no_grad():
            for batch in source.teachers["train"].walk(1024):
                said = [one(batch.arrays[teacher_array(n)].to(source.device)) for n, one in enumerate(found)]
                rows.append(torch.from_numpy(batch.rows))
                codes.append(torch.cat(said, dim=1))
        places, values = torch.cat(rows).to(source.device), torch.cat(codes)
        self.codes = values.new_zeros(int(places.max()) + 1, values.shape[1])
        self.codes[places] = values

    def of_rows(self, batch: FeatureBatch) -> list[Tensor]:
        """Return the codes of the rows of a batch."""
        if not self.paraphrase:
            return super().of_rows(batch)
        return [in_full(self.codes[torch.from_numpy(batch.rows).to(self.codes.device)])]

    def measure(self, features: Tensor, teachers: Sequence[Tensor]) -> Tensor:
        """(B, d), (B, D) each -> ()."""
        translated, codes = self.translator(features), torch.cat(list(teachers), dim=1)
        return (F.normalize(translated, dim=1) - F.normalize(codes, dim=1)).abs().sum(1).mean()


def build(dimensions: Dimensions, *, paraphrase: bool = True) -> FactorTransfer:
    """Translate towards the codes of autoencoders; without `paraphrase` towards the teachers' features as they are."""
    return FactorTransfer(dimensions, paraphrase)
