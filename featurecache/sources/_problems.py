"""What is wrong, or worth knowing, with single pictures of a batch; always with the picture's name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from featurecache.errors import BackboneError, PictureMemoryError, UnreadableSampleError
from featurecache.rgb_conversion import NOTE
from featurecache.sources._sized import ElongatedPictureError

log = logging.getLogger("featurecache")

SHOWN = 3
"""Pictures that a warning names."""


@dataclass(frozen=True, slots=True)
class PictureNote:
    """Something that the user should know of a picture that was read."""

    sample_id: str
    text: str


Found = UnreadableSampleError | PictureNote | None
"""What reading a picture has found, beside the picture."""


def note_of(picture: Image.Image, sample_id: str) -> PictureNote | None:
    """Return what decoding has noted of a picture."""
    text = picture.info.get(NOTE)
    return None if text is None else PictureNote(sample_id, text)


def explain_failure(error: Exception, sample_id: str, picture: Image.Image | None) -> UnreadableSampleError:
    """Return the failure of a picture's transform as one of that picture.

    Raises:
        BackboneError: the transform does not fit the backbone; names the picture.
        PictureMemoryError: there is too little memory for it.
    """
    if isinstance(error, UnreadableSampleError):
        return error
    if isinstance(error, BackboneError):
        raise BackboneError(f"{sample_id!r}: {error}") from None
    if isinstance(error, ElongatedPictureError):
        return UnreadableSampleError(sample_id, str(error))
    size = "" if picture is None else f", a picture of {picture.width} x {picture.height} pixels"
    if isinstance(error, MemoryError):
        raise PictureMemoryError(
            f"there is not enough memory for {sample_id!r}{size}. Shrink or remove it, or give fewer --decode-threads or "
            "--workers: each holds a picture."
        ) from None
    return UnreadableSampleError(sample_id, f"the transform fails on it ({type(error).__name__}: {error}){size}")


class PictureNotes:
    """Notes of many pictures, reported together."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = {}
        self._reported: set[str] = set()

    def add(self, found: Sequence[Found]) -> None:
        """Keep the notes of a batch."""
        for one in found:
            if isinstance(one, PictureNote):
                self._names.setdefault(one.text, {})[one.sample_id] = None

    def report(self) -> None:
        """Warn once of each kind of note."""
        for text, names in self._names.items():
            if text not in self._reported:
                self._reported.add(text)
                shown = ", ".join(map(repr, list(names)[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
                log.warning("%d pictures have %s: %s. %s", len(names), text, shown, WAY_OUT)


WAY_OUT = (
    "The model sees colours alone, so that they are blank to it. DATA?alpha=white (or black) lays transparent pictures on "
    "a ground of that colour"
)
