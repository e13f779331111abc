"""Decoders: what makes pixels of JPEG files, and how the features that came of it are recognised.

`pillow` gives the very bits of timm's own pipeline. `simplejpeg` decodes in full and resizes in whole numbers: about three
times as fast, with values that differ by up to `LARGEST_DIFFERENCE` of 255. So its name is part of the identity of features.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, Literal, get_args

from featurecache.errors import ConfigError, UnknownNameError

Decoder = Literal["pillow", "simplejpeg"]

LARGEST_DIFFERENCE = 2
"""Of 255, between a pixel of the model's input by `simplejpeg` and by `pillow`."""


def decoder_identity(decoder: Decoder) -> dict[str, Any]:
    """Return what an identity of features says of the decoder; {} for the exact one."""
    return {} if decoder == "pillow" else {"decoder": decoder}


def decoder_known_by(identity: Mapping[str, Any]) -> Decoder:
    """Return the decoder that an identity of features names.

    Raises:
        UnknownNameError: there is none of that name here.
    """
    named = identity.get("decoder", "pillow")
    if named not in get_args(Decoder):
        raise UnknownNameError(
            f"these features were decoded by {named!r}, which this version does not know. Known: "
            f"{', '.join(get_args(Decoder))}. Install the version that made them, or extract again."
        )
    found: Decoder = named
    return found


def check_decoder(decoder: Decoder) -> None:
    """Refuse a decoder that is not installed.

    Raises:
        ConfigError: says what to install.
    """
    if decoder == "simplejpeg" and importlib.util.find_spec("simplejpeg") is None:
        raise ConfigError(
            ["the decoder simplejpeg is not installed: pip install featurecache[fast], or use the decoder pillow"]
        )
