"""The text side of CLIP: what its layers and its projection say of class names in templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from featurecache.backbones import _prompts
from featurecache.backbones._arithmetic import arithmetic
from featurecache.backbones._clip_towers import matrix_of, tower_of
from featurecache.backbones._downloading import hub, reaching
from featurecache.errors import BackboneError

Tokenize = Callable[[list[str]], Tensor]
"""n texts -> (n, context) int64 token ids."""

BATCH = 64
"""Prompts of one pass: the layers of all their tokens are in memory at once."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ClipText:
    """The text tower of a model of open_clip, with the tokenizer that it was trained with."""

    model: nn.Module
    tokenize: Tokenize
    normed: bool
    """Whether layers pass through the final text norm."""
    precision: str

    def templates(self, words: str) -> tuple[str, ...]:
        """Return the templates that `--prompts` names: see `_prompts.templates`."""
        return _prompts.templates(words)

    def features(self, class_names: Sequence[str], templates: Sequence[str]) -> dict[str, Tensor]:
        """Return the layers at the token that the model itself pools, and the projections; on the CPU, in float32.

        "text/eot" is (L, C, P, Dt), "text/embedding" (C, P, E) and not L2-normalised.

        Raises:
            ConfigError: no class names, or templates without their {}.
            BackboneError: the tokenizer is not to be had, or not of this model.
        """
        texts = _prompts.prompts(class_names, templates)
        passes = [self._of(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        layers, embedding = torch.cat([one for one, _ in passes], 1), torch.cat([one for _, one in passes])
        shape = (len(class_names), len(templates))
        return {"text/eot": layers.unflatten(1, shape), "text/embedding": embedding.unflatten(0, shape)}

    def space(self) -> dict[str, Tensor]:
        """Return both projections and the scale of the logits: (1, D, E), (1, Dt, E) and (1, 1, 1), on the CPU, in float32.

        A projection that is no linear map, such as one of two layers, is left out; the bias of one that has it, too.
        """
        model: Any = self.model
        tower = self._tower
        found = {
            "text/image_projection": tower_of(model).projection(),
            "text/logit_scale": model.logit_scale.reshape(1, 1),
            "text/projection": matrix_of(tower.text_projection, tower.token_embedding.embedding_dim),
        }
        return {name: values.detach().float().cpu()[None] for name, values in found.items() if values is not None}

    def _of(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """(L, n, Dt) and (n, E)."""
        model: Any = self.model
        ids = self._checked(self.tokenize(texts)).to(model.logit_scale.device)
        with torch.inference_mode(), arithmetic(self.precision, ids.device):
            found = model.forward_intermediates(
                text=ids, normalize=False, normalize_intermediates=self.normed, text_output_extra_tokens=True
            )
            layers = torch.stack([self._pooled(layer, ids) for layer in _sequences(found)])
        return layers.float().cpu(), found["text_features"].float().cpu()

    def _pooled(self, layer: Tensor, ids: Tensor) -> Tensor:
        """(n, Dt) at the token that the model pools."""
        tower: Any = self._tower
        if tower is self.model:
            return text_global_pool(layer, ids, tower.text_pool_type, tower.text_eos_id)
        own_token = tower.cls_emb is not None  # CoCa appends one, and pools that
        return text_global_pool(layer, ids, "last" if own_token else tower.pool_type, tower.eos_id)

    @property
    def _tower(self) -> Any:
        """The part with the text; older models of open_clip are their own."""
        return getattr(self.model, "text", self.model)

    def _checked(self, ids: Tensor) -> Tensor:
        words = int(self._tower.vocab_size)
        if int(ids.max()) >= words:
            raise BackboneError(
                f"the tokenizer gives ids up to {int(ids.max())}, and this text tower knows {words} words: it was made "
                "for another tokenizer, so it cannot read class names. Name it in text_cfg.hf_tokenizer_name."
            )
        return ids


def _sequences(found: dict[str, Any]) -> list[Tensor]:
    """Return (n, T, Dt) for each layer; open_clip splits off an appended class token."""
    layers: list[Tensor] = found["text_intermediates"]
    suffixes = found.get("text_intermediates_suffix")
    return layers if suffixes is None else [torch.cat(pair, 1) for pair in zip(layers, suffixes, strict=True)]


def lazy_tokenizer(make: Callable[[], Tokenize], *, is_on_hub: bool = True) -> Tokenize:
    """Return a tokenizer that is made when it is first used: most runs have no texts, and some tokenizers are downloads."""

    @cache
    def made() -> Tokenize:
        with reaching(hub()) if is_on_hub else nullcontext("") as unreachable:
            try:
                return make()
            except Exception as error:  # each transport of the hub raises errors of its own kind
                reason = unreachable or f"{type(error).__name__}: {error}".splitlines()[0]
                raise BackboneError(
                    f"the tokenizer of this text tower cannot be had ({reason}). It is needed for --prompts only: give --prompts "
                    "none, or fetch it where there is a network."
                ) from error

    return lambda texts: made()(texts)
