"""Pictures that are unlike the others of a data set: another format or mode, few colours, far smaller, there many times."""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from featurecache.datasets import ImageDataset
from featurecache.errors import UnreadableSampleError
from featurecache.rgb_conversion import NOTE

SIDE = 128
"""Pixels of a side that are looked at for colours; of larger pictures every k-th."""
FEW_COLOURS, MOST = 4, 0.9
"""So few colours, of 4,096 with four bits a channel, make up nine tenths of a drawn placeholder; of a photograph many do."""
FAR_SMALLER = 4
"""Times that the shorter side is below the median."""
ELONGATED = 10
"""Times that the ratio of the sides is above the median."""
MANY_TIMES = 5
RARE_SHARE, RARE_COUNT, RARE_TIMES = 0.1, 2, 3
"""What a tenth of the pictures are or fewer (two, of few), and the others three times as often, is odd."""
MODES = {"1": "black and white", "L": "grey", "LA": "grey with transparency", "P": "palette", "RGB": "colour",
         "RGBA": "colour with transparency", "CMYK": "CMYK", "I;16": "grey of 16 bits", "I": "grey of 32 bits",
         "F": "grey of floats"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is seen of one picture."""

    digest: str
    """Of the decoded pixels."""
    width: int
    height: int
    colours: int
    """How many, of 4,096, make up nine tenths of the pixels."""
    grey: bool
    """Whether the three channels are equal."""
    form: str = ""
    """JPEG, PNG, ...; "" where the picture is in no file."""
    mode: str = ""
    """Pillow's mode of the file."""
    frames: int = 1
    note: str = ""
    """What decoding has noted, such as that all there is to see is in the alpha channel."""


def look_at(dataset: ImageDataset, row: int) -> Look:
    """Decode one picture and say what is seen.

    Raises:
        UnreadableSampleError: it cannot be read.
    """
    picture = dataset.read(row)
    digest = hashlib.blake2b(f"{picture.size}".encode(), digest_size=16)
    digest.update(picture.tobytes())
    step = max(1, max(picture.size) // SIDE)
    pixels = np.asarray(picture)[::step, ::step].reshape(-1, 3)
    cells = (pixels >> 4).astype(np.int32) @ np.array([256, 16, 1], np.int32)
    counts = np.sort(np.bincount(cells))[::-1]
    form, mode, frames = _header_of(dataset, row)
    return Look(
        digest=digest.hexdigest(), width=picture.width, height=picture.height,
        colours=int(np.searchsorted(np.cumsum(counts), MOST * len(cells))) + 1, grey=bool((pixels == pixels[:, :1]).all()),
        form=form, mode=mode, frames=frames, note=picture.info.get(NOTE, ""),
    )  # fmt: skip


def _header_of(dataset: ImageDataset, row: int) -> tuple[str, str, int]:
    try:
        content = dataset.content(row)
        if content is None:
            return "", "", 1
        with Image.open(io.BytesIO(content)) as image:
            return image.format or "", image.mode, int(getattr(image, "n_frames", 1))
    except UnreadableSampleError:
        raise
    except Exception:  # the content of data that is in no file is pixels, and no format
        return "", "", 1


def find_odd_ones(looks: Mapping[int, Look]) -> dict[int, list[str]]:
    """Return row -> what is unlike the others, for the rows of which something is; what is seldom odd comes first."""
    rows, found = list(looks), defaultdict[int, list[str]](list)
    if not rows:
        return {}
    for values, words in (
        ([look.form for look in looks.values()], "{} among {}"),
        ([kind_of(look) for look in looks.values()], "{} among {}"),
    ):
        usual, rare = _rare(values)
        for row, value in zip(rows, values, strict=True):
            if value in rare:
                found[row].append(words.format(value, usual))
    moving = [row for row, look in looks.items() if look.frames > 1]
    if is_rare(len(moving), len(looks), len(looks) - len(moving)):
        for row in moving:
            found[row].append(f"{looks[row].frames} frames, of which the first is read")
    for name, odd in _by_size(looks).items():
        for row, text in odd.items():
            found[row].append(f"{name}{text}")
    for row, text in _few_colours(looks).items():
        found[row].append(text)
    for row, look in looks.items():
        if look.note:
            found[row].append(f"{look.note} (read with DATA?alpha=white)")
    times = Counter(look.digest for look in looks.values())
    for row, look in looks.items():
        if times[look.digest] >= MANY_TIMES:
            found[row].append(f"the same picture {times[look.digest]} times")
    kinds = Counter(_kind(reason) for reasons in found.values() for reason in reasons)
    return dict(sorted(found.items(), key=lambda one: (min(kinds[_kind(reason)] for reason in one[1]), one[0])))


def _kind(reason: str) -> str:
    return re.sub(r"\d.*", "", reason).partition("(")[0]


def kind_of(look: Look) -> str:
    """Return in words what the pixels are: colour, grey, CMYK or of more bits."""
    if look.mode in ("CMYK", "I;16", "I", "F"):
        return MODES[look.mode]
    return "grey" if look.grey else "colour"


def kinds_of(look: Look) -> list[str]:
    """Return what the pixels are, and whether they move."""
    return [kind_of(look), *(["animated"] if look.frames > 1 else [])]


def _rare(values: Sequence[Hashable]) -> tuple[Hashable, set[Hashable]]:
    """Return (the usual value, values that few have while the usual one has many)."""
    counts = Counter(value for value in values if value != "")
    if not counts:
        return "", set()
    usual, most = counts.most_common(1)[0]
    return usual, {value for value, count in counts.items() if value != usual and is_rare(count, len(values), most)}


def is_rare(count: int, total: int, usual: int) -> bool:
    """Return whether so few of all, beside so many usual ones, are odd ones out."""
    return 0 < count <= max(RARE_COUNT, RARE_SHARE * total) and usual >= RARE_TIMES * count


def _by_size(looks: Mapping[int, Look]) -> dict[str, dict[int, str]]:
    shorter = {row: min(look.width, look.height) for row, look in looks.items()}
    ratio = {row: max(look.width, look.height) / shorter[row] for row, look in looks.items()}
    side, usual = float(np.median(list(shorter.values()))), float(np.median(list(ratio.values())))
    small = [row for row, value in shorter.items() if FAR_SMALLER * value <= side]
    long = [row for row, value in ratio.items() if value >= ELONGATED * usual]
    found = {}
    for name, odd, text in (
        ("far smaller: ", small, f", the usual shorter side is {side:.0f}"), ("far longer than wide: ", long, ""),
    ):  # fmt: skip
        if is_rare(len(odd), len(looks), len(looks) - len(odd)):
            found[name] = {row: f"{looks[row].width} x {looks[row].height}{text}" for row in odd}
    return found


def _few_colours(looks: Mapping[int, Look]) -> dict[int, str]:
    usual = float(np.median([look.colours for look in looks.values()]))
    few = [row for row, look in looks.items() if look.colours <= FEW_COLOURS and 4 * look.colours <= usual]
    if not is_rare(len(few), len(looks), len(looks) - len(few)):
        return {}
    return {
        row: f"few colours ({looks[row].colours} in most of it, in the others about {usual:.0f}): a placeholder?"
        for row in few
    }
