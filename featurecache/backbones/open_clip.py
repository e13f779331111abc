"""CLIP and its kin, by open_clip: `open_clip:ARCH/PRETRAINED`, or `open_clip:ARCH` and `open_clip:FILE.json` with `--weights`.

The image tower gives layers, the pooled vector before the projection (`embedding`) and the projected one (`projected`, not
L2-normalised). A tag says the preprocessing, with `--weights` too; without one it is open_clip's default, OpenAI's.
The recorded name carries the tag only where the weights come from it.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from featurecache.backbones import Backbone, BackboneOptions
from featurecache.backbones._clip_building import with_weights
from featurecache.backbones._clip_names import Named, configured, preprocessing, resolve
from featurecache.backbones._clip_taking import ClipTaker
from featurecache.backbones._clip_text import ClipText, lazy_tokenizer
from featurecache.backbones._clip_towers import tower_of
from featurecache.backbones._wrapping import wrap

log = logging.getLogger(__name__)


def build(model_id: str, *, options: BackboneOptions) -> Backbone:
    """Build the model called ARCH, ARCH/PRETRAINED, or by the path of a configuration of open_clip's, FILE.json.

    Raises:
        UnknownNameError: open_clip has no such architecture, or the architecture no such tag; names the nearest.
        WeightsError: the weights cannot be had, or are not of this architecture.
        BackboneError, ConfigError: an option that this model cannot take.
    """
    named = resolve(model_id)
    config = configured(named, options)
    _warn_of_activation(named, config)
    data_config = preprocessing(named, config)
    model = with_weights(named, config, options)
    name = named.architecture if options.weights is not None else named.full
    text = ClipText(
        model=model,
        tokenize=lazy_tokenizer(
            partial(named.tokenizer, config), is_on_hub=bool(config["text_cfg"].get("hf_tokenizer_name"))
        ),
        normed=options.norm == "final",
        precision=options.precision,
    )
    return wrap(
        model,
        name=f"open_clip:{name}",
        asked=f"open_clip:{named.asked}",
        options=options,
        data_config=data_config,
        taker=ClipTaker(tower_of(model), options, config["embed_dim"]),
        architecture=dict(options.architecture) | ({"config": config} if named.is_file else {}),
        text=text if hasattr(getattr(model, "text", model), "forward_intermediates") else None,
    )


def _warn_of_activation(named: Named, config: dict[str, Any]) -> None:
    """Warn where a tag's weights were trained with another activation than this configuration computes: their keys are equal."""
    trained, computed = bool(named.pretrained.get("quick_gelu")), bool(config.get("quick_gelu"))
    if not named.tag or trained == computed:
        return
    names = {True: "QuickGELU", False: "GELU"}
    log.warning(
        "the weights %s of %s were trained with %s, and open_clip:%s computes %s: the features are not theirs. "
        "Give --backbone-option quick_gelu=%s.",
        named.tag, named.architecture, names[trained], named.architecture, names[computed], str(trained).lower(),
    )  # fmt: skip
