"""Places beyond this machine that only fsspec reaches (`s3://bucket/x.zarr`), read with the few words of a `Path` that we use."""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from featurecache.errors import PlaceError

T = TypeVar("T")

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")  # a single letter would be a drive
_SWALLOWED = re.compile(r"([a-z][a-z0-9+.-]+:/)([^/].*)")


class Url:
    """A file or folder that fsspec reads; it is never written. What goes wrong there is an `OSError`, as with a `Path`."""

    def __init__(self, text: str | Url) -> None:
        """Take a text with a scheme, such as "s3://bucket/x.zarr".

        Raises:
            ValueError: it has none, so that it is a path of this machine.
        """
        if not is_url(text):
            raise ValueError(f"{text} has no scheme such as s3://")
        self._text = str(text).rstrip("/")

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Url({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __truediv__(self, name: str | Path) -> Url:
        return Url(f"{self._text}/{name}")

    @property
    def name(self) -> str:
        """Last part of the path."""
        return posixpath.basename(self._text)

    @property
    def suffix(self) -> str:
        """What the name ends in, with its dot."""
        return Path(self.name).suffix

    @property
    def parent(self) -> Url:
        """Folder that this is in."""
        return Url(posixpath.dirname(self._text))

    def exists(self) -> bool:
        """Return whether a file is there, or anything below the name."""
        return bool(self._asked(lambda system: system.exists(self._text)))

    def is_dir(self) -> bool:
        """Return whether anything is below the name."""
        return bool(self._asked(lambda system: system.isdir(self._text)))

    def read_bytes(self) -> bytes:
        """Return the whole file."""
        return bytes(self._asked(lambda system: system.cat_file(self._text)))

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Return the whole file as one that can be read line by line."""
        if mode != "rb":
            raise self._refused()
        return io.BytesIO(self.read_bytes())

    def glob(self, pattern: str) -> list[Url]:
        """Return the files below that match; none where the place cannot list what it holds."""
        try:
            found = self._asked(lambda system: system.glob(f"{self._text}/{pattern}"))
        except (FileNotFoundError, PlaceError):
            return []
        return [self / posixpath.basename(name) for name in found]

    def mkdir(self, **_: Any) -> None:
        """Refuse: nothing is written there."""
        raise self._refused()

    def _refused(self) -> PlaceError:
        return PlaceError(f"{self._text} is only read, never written")

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        """Return the contents of files below, fetched side by side where the place can do that."""
        if not names:
            return []
        if len(names) == 1:
            return [(self / names[0]).read_bytes()]
        paths = [f"{self._text}/{name}" for name in names]
        keys, found = self._asked(lambda system: (list(map(system._strip_protocol, paths)), system.cat(paths)))
        return [bytes(found[key]) for key in keys]

    def _asked(self, question: Callable[[Any], T]) -> T:
        scheme = self._text.partition("://")[0]
        try:
            import fsspec

            return question(fsspec.filesystem(scheme))
        except FileNotFoundError:
            raise
        except ImportError as error:
            way = "pip install 'featurecache[s3]'" if scheme in ("s3", "s3a") else str(error)
            raise PlaceError(f"{self._text} needs a package that is not installed. Install it: {way}") from error
        except Exception as error:  # every kind of place has errors of its own: no credentials, no such host
            raise PlaceError(f"{self._text} cannot be read: {type(error).__name__}: {error}") from error


Place = Url | Path
"""What a verb that only reads may be given; the order is that in which a text is tried."""


def is_url(text: object) -> bool:
    """Return whether a text names a place beyond this machine."""
    return isinstance(text, Url) or (isinstance(text, str) and bool(_SCHEME.match(text)))


def placed(path: str | Path | Url) -> Place:
    """Return a text as what it names; a URL that was made a `Path`, which swallows a slash, is one again."""
    if isinstance(path, Path):
        swallowed = _SWALLOWED.match(str(path))
        return Url(f"{swallowed[1]}/{swallowed[2]}") if swallowed and not Path(path.parts[0]).exists() else path
    return Url(path) if is_url(path) else Path(str(path))


def absolute(place: Place) -> str:
    """Return what names a place from any folder."""
    return str(place) if isinstance(place, Url) else str(place.expanduser().resolve())
