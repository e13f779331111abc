"""Bytes to RGB pictures, as timm's own reader decodes them; what cannot be decoded is named with the reason."""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

from featurecache.errors import UnreadableSampleError


def decode(content: bytes, sample_id: str) -> Image.Image:
    """Return the picture in `content`, RGB, fully decoded.

    Raises:
        UnreadableSampleError: empty, truncated, no picture, or so large that it must be an attack.
    """
    if not content:
        raise UnreadableSampleError(sample_id, "the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", message="Palette images with Transparency")
            return Image.open(io.BytesIO(content)).convert("RGB")
    except UnidentifiedImageError:
        raise UnreadableSampleError(sample_id, "it is not an image in a format that Pillow knows") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableSampleError(sample_id, f"it is too large to be decoded safely ({error})") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnreadableSampleError(sample_id, str(error) or type(error).__name__) from None
