"""The head of DTL's published ViT: the mean of the patch tokens first, the final norm after it."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn

from featurecache.errors import BackboneError


class LateNorm:
    """Passes the last stream of tokens by the final norm, which is then applied to their mean; no name of the model changes."""

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm
        self.last: weakref.ref[Tensor] | None = None

    def note(self, block: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        """Remember what the last block says, so that it is known again before the norm."""
        self.last = weakref.ref(out)

    def pass_by(self, norm: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        """Return the stream as it came; the norm of an earlier layer stays."""
        return given[0] if self.last is not None and given[0] is self.last() else None

    def apply(self, identity: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """(B, D) mean -> (B, D) after the final norm."""
        found: Tensor = self.norm.forward(out)
        return found


def check_poolable(trunk: Any) -> None:
    """Refuse a model whose head is no mean or token with a norm.

    Raises:
        BackboneError: it has another kind of head.
    """
    parts = [getattr(trunk, name, None) for name in ("norm", "fc_norm")]
    if not all(isinstance(part, nn.Module) for part in parts) or getattr(trunk, "attn_pool", None) is not None:
        raise BackboneError(
            f"compat published pools the patches of a ViT before its final norm, and {type(trunk).__name__} has another "
            "kind of head. Leave compat out: the model's own pooling stays."
        )


def pool_patches_before_the_norm(trunk: Any) -> None:
    """Give a ViT the head it has in timm with `global_pool="avg"` and its final norm used as `fc_norm`.

    The last block must have its other hooks already.
    """
    trunk.global_pool = "avg"
    if isinstance(trunk.norm, nn.Identity):
        return
    late = LateNorm(trunk.norm)
    trunk.blocks[-1].register_forward_hook(late.note)
    trunk.norm.register_forward_hook(late.pass_by)
    trunk.fc_norm.register_forward_hook(late.apply)
