"""One row of a data set into its places in a batch: read, decoded, seen in every view, transformed. Threads and workers share it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from featurecache.backbones import Backbone
from featurecache.datasets import ImageDataset
from featurecache.decoders import Decoder, check_decoder
from featurecache.errors import ConfigError
from featurecache.sources._fast_jpeg import FastJpeg, fast_jpeg, pixels_of
from featurecache.sources._pixels import Place, Preparation, preparation
from featurecache.sources._problems import Found, explain_failure, note_of
from featurecache.views import Views


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Filler:
    """Fills places with images of a data set."""

    read: Callable[[int], Image.Image]
    content: Callable[[int], bytes | None]
    sample_id: Sequence[str]
    prepare: Preparation
    fast: FastJpeg | None
    """None: every image goes the exact way."""
    views: Views
    which: tuple[int, ...]
    """Numbers of the views to give."""

    def __call__(self, row: int, places: Sequence[Place]) -> Found:
        """Write the views of a row into `places`, one (3, H, W) each.

        Return why that cannot be, with zeros in them, or what is to be known of the picture.

        Raises:
            BackboneError: the transform does not fit the backbone; names the picture.
        """
        picture: Image.Image | None = None
        try:
            if self._fill_fast(row, places):
                return None
            picture = self.read(row)
            for view, place in zip(self.views.of(picture, self.sample_id[row], self.which), places, strict=True):
                self.prepare(view, place)
            return note_of(picture, self.sample_id[row])
        except Exception as error:  # a transform may be anybody's code, and raise whatever it likes
            for place in places:
                place[...] = 0
            return explain_failure(error, self.sample_id[row], picture)

    def _fill_fast(self, row: int, places: Sequence[Place]) -> bool:
        pixels = None if self.fast is None else pixels_of(self.content(row))
        if self.fast is None or pixels is None:
            return False
        if self.which == (0,):
            return self.fast(pixels, places[0])
        views = self.views.of(Image.fromarray(pixels), self.sample_id[row], self.which)
        # a copy: torch wants memory that could be written
        return all(self.fast(np.array(view), place) for view, place in zip(views, places, strict=True))


def filler_of(
    backbone: Backbone, dataset: ImageDataset, views: Views, decoder: Decoder, which: Sequence[int] | None = None
) -> Filler:
    """Return what fills batches for this backbone with the views that `which` numbers; None: all.

    Raises:
        ConfigError: the decoder is not installed.
    """
    check_decoder(decoder)
    prepare = preparation(backbone.transform)
    fast = fast_jpeg(backbone.transform, prepare) if decoder == "simplejpeg" else None
    return Filler(
        read=dataset.read, content=dataset.content, sample_id=dataset.table.sample_id,
        prepare=prepare, fast=fast, views=views, which=tuple(range(views.count) if which is None else which),
    )  # fmt: skip


def packed(filler: Filler) -> bytes:
    """Return the filler in bytes, for another process.

    Raises:
        ConfigError: the data set or the transform cannot be taken there; says which, and the way out.
    """
    try:
        return pickle.dumps(filler, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # pickle raises whatever the parts of a part raise
        named = {"the data set": (filler.read, filler.content), "the transform of the backbone": filler.prepare}
        culprits = [name for name, part in named.items() if not _can_be_sent(part)]
        raise ConfigError(
            [
                f"{' and '.join(culprits)} cannot be sent to worker processes ({error}). Make it of functions and classes "
                "that can be imported, or give --workers 0: threads share what there is"
            ]
        ) from None


def _can_be_sent(part: object) -> bool:
    try:
        pickle.dumps(part)
    except Exception:  # as above
        return False
    return True
