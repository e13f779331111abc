"""What the heads of CLIP share: arrays of the classes that are checked before they are read, unit vectors, the adapter.

Those arrays are no values of a head: a head keeps them as buffers that its state does not hold, so that the values it has
learned can be loaded into one that is built for other classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.checks import check
from heads import HeadSpec
from heads._inputs import Inputs

EMBEDDING, EOT = "text/embedding", "text/eot"
IMAGE_PROJECTION, TEXT_PROJECTION = "text/image_projection", "text/projection"
LOGIT_SCALE = "text/logit_scale"

RATIO, REDUCTION = 0.2, 4
"""Of the published adapter: its share of the result, and by how much it is narrower than the joint space."""


def check_constants(name: str, spec: HeadSpec, needed: Sequence[str]) -> None:
    """Refuse what no head of CLIP can read.

    Raises:
        ConfigError: another task than classes, arrays of the classes that are not there, or of other classes.
    """
    absent = [one for one in needed if one not in spec.constants]
    counts = {one: spec.constants[one].shape[-3] for one in (EMBEDDING, EOT) if one in spec.constants}
    check(
        (spec.task == "classification", f"{name} tells classes apart by their names; this is a {spec.task} task"),
        (
            not absent,
            f"{name} needs {', '.join(absent)}, which the source does not hold. Extract again with --prompts and "
            "--extend, by a model with a text side",
        ),
        *(
            (count == spec.num_classes, f"{one} speaks of {count} classes, and there are {spec.num_classes}")
            for one, count in counts.items()
        ),
    )


def unit(vectors: Tensor) -> Tensor:
    """Return (..., E) vectors of length one; a vector of zeros stays."""
    return F.normalize(vectors, dim=-1)


def ensembled(embedding: Tensor) -> Tensor:
    """(C, P, E) embeddings -> (C, E): the mean over templates of vectors of length one, brought to length one again."""
    return unit(unit(embedding).mean(dim=1))


class Adapter(nn.Module):
    """A residual bottleneck in the joint space: ratio * relu(up(relu(down(z)))) + (1 - ratio) * z."""

    ratio: Tensor

    def __init__(self, width: int, bottleneck: int, ratio: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, width, bias=False)
        self.register_buffer("ratio", torch.tensor(ratio))

    def forward(self, z: Tensor) -> Tensor:
        """(B, E) -> (B, E), of any length before and after."""
        return self.ratio * F.relu(self.up(F.relu(self.down(z)))) + (1 - self.ratio) * z


class Joint(nn.Module):
    """Images in the space that they share with texts: tau times the cosine to a vector for each class."""

    scale: Tensor
    classes: Tensor

    def __init__(self, name: str, spec: HeadSpec) -> None:
        super().__init__()
        check_constants(name, spec, (EMBEDDING, LOGIT_SCALE))
        self.inputs = Inputs(spec)
        embedding = spec.constants[EMBEDDING].float()
        check(
            (
                len(spec.shapes) == 1,
                f"{name} reads the projected vector of an image, got {', '.join(spec.shapes)}. Leave --layers out",
            ),
            (
                self.inputs.width == embedding.shape[-1],
                f"the texts have {embedding.shape[-1]} dimensions, the images {self.inputs.width}: "
                f"{name} reads the space that both share. Leave --layers out",
            ),
        )
        self.register_buffer("scale", spec.constants[LOGIT_SCALE].float().exp().reshape(()), persistent=False)
        self.register_buffer("classes", ensembled(embedding), persistent=False)

    def image(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, E) vectors of the images, of any length."""
        return self.inputs.joined(arrays)

    def compared(self, z: Tensor, classes: Tensor) -> Tensor:
        """(B, E) and (C, E), of any length -> (B, C) logits."""
        return self.scale * unit(z) @ unit(classes).T
