"""A function that another process makes again only when it calls it: what it needs may take seconds to import."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any


class Later:
    """Calls a function; sent to another process, it is bytes until the first call there."""

    def __init__(self, function: Callable[[Any], object] | bytes) -> None:
        self._function = function

    def __call__(self, value: Any) -> object:
        """Return what the function gives."""
        if isinstance(self._function, bytes):
            self._function = pickle.loads(self._function)
        return self._function(value)  # type: ignore[operator]

    def __reduce__(self) -> tuple[type[Later], tuple[bytes]]:
        held = self._function
        return Later, (held if isinstance(held, bytes) else pickle.dumps(held, pickle.HIGHEST_PROTOCOL),)
