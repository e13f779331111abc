"""What reads rows for tests of decoding, as classes that a new process can import soon."""

from __future__ import annotations

import os
import sys
import time

import numpy as np
from PIL import Image

from featurecache.errors import UnreadableSampleError
from tests.featurecache.datasets.pictures import pixels


def picture(seed: int = 0, size: tuple[int, int] = (50, 41), mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 40, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels(seed, size) + noise).convert(mode)


class Failing:
    """Reads rows, but those in `bad`; `slow` ones take their time to fail."""

    def __init__(self, bad: set[int], slow: frozenset[int] = frozenset()) -> None:
        self.bad, self.slow, self.read = bad, slow, []

    def __call__(self, row: int) -> Image.Image:
        self.read.append(row)
        if row in self.slow:
            time.sleep(0.1)
        if row in self.bad:
            raise UnreadableSampleError(f"{row}.jpg", f"truncated at {row}")
        return picture(row)


class Telling:
    """Fails with what the process has imported of some modules."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, row: int) -> Image.Image:
        raise UnreadableSampleError(f"{row}.jpg", f"imported: {[name for name in self.names if name in sys.modules]}")


class Fatal:
    """Ends the process that reads a certain row."""

    def __init__(self, row: int) -> None:
        self.row = row

    def __call__(self, row: int) -> Image.Image:
        if row == self.row:
            os._exit(3)
        return picture(row)


class Homesick:
    """Reads rows in the process that made it, and cannot be made anew in another one."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def __setstate__(self, state: dict[str, int]) -> None:
        if state["home"] != os.getpid():
            raise ImportError("no module named nearby")
        self.__dict__.update(state)

    def __call__(self, row: int) -> Image.Image:
        return picture(row)
