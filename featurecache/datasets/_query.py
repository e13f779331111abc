"""Options within a spec: `NAME?key=value&key=value`."""

from __future__ import annotations

from collections.abc import Collection

from featurecache.errors import DatasetError


def queried(spec: str) -> tuple[str, dict[str, str]]:
    """Return what stands before the question mark, and the options behind it.

    Raises:
        DatasetError: something behind it is not key=value.
    """
    name, _, query = spec.partition("?")
    pairs = [part.partition("=") for part in query.split("&") if part]
    bare = [key for key, sign, _ in pairs if not sign]
    if bare:
        raise DatasetError(
            f"{spec!r} holds {', '.join(map(repr, bare))} where key=value belongs, e.g. {name}?key=value."
        )
    return name, {key: value for key, _, value in pairs}


def check_keys(options: Collection[str], known: Collection[str], spec: str) -> None:
    """Refuse options that nothing would read.

    Raises:
        DatasetError: names them and those that are known.
    """
    unknown = [key for key in options if key not in known]
    if unknown:
        raise DatasetError(f"{spec!r} has the options {', '.join(unknown)}. Known here: {', '.join(known) or 'none'}.")
