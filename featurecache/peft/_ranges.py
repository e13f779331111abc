"""Which blocks a user means: last, all, indices and ranges of them, checked against the model."""

from __future__ import annotations

from featurecache.errors import ConfigError


def indices(words: str, count: int, option: str) -> list[int]:
    """Return the ascending indices that `words` names among `count` blocks: all, last, or such as 0,3,6-11.

    Raises:
        ConfigError: what is no index, or lies outside the model; all at once.
    """
    if words in ("all", "last"):
        return list(range(count)) if words == "all" else [count - 1]
    found: set[int] = set()
    problems = []
    for word in words.split(","):
        first, _, last = word.strip().partition("-")
        last = last or first
        if not (first.isdigit() and last.isdigit()):
            problems.append(f"{option} takes all, last, or indices such as 0,3,6-{count - 1}, got {word.strip()!r}")
        elif not int(first) <= int(last) < count:
            problems.append(f"{option} {word.strip()} lies outside the model, whose {count} blocks are 0-{count - 1}")
        else:
            found |= set(range(int(first), int(last) + 1))
    if problems:
        raise ConfigError(problems)
    return sorted(found)
