"""Inside a worker process: what it begins with, and how it fills its part of a batch.

Nothing here imports torch: a process that decodes pictures for the usual transforms needs none, and starts in a tenth of
the time.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from featurecache.errors import WorkerError
from featurecache.processes import serve
from featurecache.sources._filler import Filler
from featurecache.sources._problems import Found

Ring = npt.NDArray[np.float32]
"""(slots, V, B, 3, H, W)."""
Current = npt.NDArray[np.int64]
"""(workers, 2): process, and the row that it is at; each worker writes a line of its own."""
NO_ROW = -1


@dataclass
class _Inside:
    """What a worker process holds."""

    sent: Any
    ring: Ring
    current: npt.NDArray[np.int64]
    """(2,): this process, and the row that it is at."""
    filler: Filler | None = None


_inside: list[_Inside] = []  # a pool can leave nothing with a process but in a global; one entry, in workers only


def enter(
    sent: Any, memory: Any, shape: tuple[int, ...], limits: tuple[int | None, bool], current: Any, begun: Any
) -> None:
    """Begin a worker process; `current` and `begun` are shared: `Current`, and how many workers have begun."""
    serve(threads=1)
    sys.path.append(os.getcwd())  # where backbones of one's own are found, last, as in the process that loads them
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = limits
    with begun.get_lock():
        number, begun.value = begun.value, begun.value + 1
    line = np.frombuffer(current, np.int64).reshape(-1, 2)[number]
    line[:] = os.getpid(), NO_ROW
    _inside.append(_Inside(sent, np.frombuffer(memory, np.float32).reshape(shape), line))


def fill(slot: int, first: int, rows: Sequence[Any]) -> list[Found]:
    """Fill places `first` and on of a slot with the images of some rows; return what is to be said of each, or None."""
    inside = _inside[0]
    if inside.filler is None:
        inside.filler = _unpacked(inside.sent)
    places = inside.ring[slot].swapaxes(0, 1)[first : first + len(rows)]
    found: list[Found] = []
    for row, place in zip(rows, places, strict=True):
        inside.current[1] = row[0] if isinstance(row, tuple) else row
        found.append(inside.filler(row, place))
    inside.current[1] = NO_ROW
    return found


def _unpacked(sent: Any) -> Filler:
    try:
        found: Filler = pickle.loads(memoryview(sent).cast("B"))
    except Exception as error:  # importing runs whatever the modules hold
        raise WorkerError(
            f"a worker process cannot make the data set and the transform again ({type(error).__name__}: {error}). They must "
            "be of functions and classes that a new process can import. Give --workers 0, which decodes in threads."
        ) from None
    return found
