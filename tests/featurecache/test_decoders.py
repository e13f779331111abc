"""The decoder is known by the identity of the features it made."""

from __future__ import annotations

import pytest

from featurecache.decoders import decoder_identity, decoder_known_by
from featurecache.errors import UnknownNameError


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_an_identity_gives_back_its_decoder(decoder):
    assert decoder_known_by({"name": "x", **decoder_identity(decoder)}) == decoder


def test_the_exact_decoder_is_not_written_down_so_that_older_stores_are_its():
    assert decoder_identity("pillow") == {}


def test_a_decoder_of_another_version_is_refused_with_the_way_out():
    with pytest.raises(
        UnknownNameError, match="decoded by 'turbo', which this version does not know.*or extract again"
    ):
        decoder_known_by({"decoder": "turbo"})
