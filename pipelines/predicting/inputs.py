"""What may be asked of a run: pictures, and neither stores, runs, tables nor weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featurecache.errors import DatasetError
from featurecache.path_kinds import ARTIFACTS, explain_path, identify_path


def refuse_other_kinds(paths: Sequence[Path]) -> None:
    """Refuse stores, runs and tables among what is to be looked at.

    Raises:
        DatasetError: says of each what it is, and the command that would be right.
    """
    found = []
    for path in paths:
        kind = identify_path(path, pictures=False)
        if kind in ARTIFACTS and (why := explain_path(path, "data")):
            found.append(f"{path} holds no pictures to predict: {why}")
        elif kind in ("table", "weights"):
            found.append(f"{path} is no picture: name image files, folders of images, or archives of one")
    if found:
        raise DatasetError(". ".join(found) + ".")
