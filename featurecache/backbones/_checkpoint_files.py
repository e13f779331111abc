"""Reading files of weights: safetensors, or what `torch.save` wrote, whose tensors are taken and whose code is never run.

A training script saves more than tensors: its arguments, counters, configurations. Objects of such classes are replaced by
stand-ins that keep nothing, so that no code of the file, of a script or of a library is called. Functions of Python's own
library, which a file of weights has no use for and attacks are made of, are refused.
"""

from __future__ import annotations

import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from featurecache.errors import WeightsError

PLAIN = frozenset({
    "argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict", "collections.deque", "datetime.datetime",
    "datetime.date", "datetime.timedelta", "datetime.timezone", "decimal.Decimal", "enum.Enum", "functools.partial",
    "pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath",
    "pathlib._local.Path", "pathlib._local.PosixPath", "pathlib._local.WindowsPath", "uuid.UUID",
    "builtins.dict", "builtins.list", "builtins.tuple", "builtins.int", "builtins.float", "builtins.str", "builtins.bool",
    "builtins.bytes", "builtins.object", "builtins.frozenset", "builtins.slice", "builtins.range", "builtins.type", "builtins.getattr",
    "typing.Any", "typing.Union", "torch.torch_version.TorchVersion", "copyreg._reconstructor",
})  # fmt: skip
"""What training scripts write of Python's own library and of torch; stand-ins take its place."""
NUMPY = frozenset({"scalar", "dtype", "ndarray", "_reconstruct"})
"""What numbers and arrays of NumPy are pickled as; they are read as what they are."""
DTYPES = {
    f"numpy.dtypes.{name}": kind for name, kind in vars(np.dtypes).items()
    if isinstance(kind, type) and issubclass(kind, np.dtype) and kind is not np.dtypes.ObjectDType
}  # fmt: skip
"""Classes of which NumPy's dtypes are, by name; objects, which could be anything, are not among them."""
PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")
OTHER = {
    b"\x1f\x8b": "a gzip archive", b"\x89HDF": "an HDF5 file, as Keras writes", b"BZh": "a bzip2 archive",
    b"7z\xbc\xaf": "a 7z archive", b"%PDF": "a PDF", b"\xff\xd8\xff": "a JPEG picture", b"\x89PNG": "a PNG picture",
    b"\x93NUMPY": "a NumPy array",
}  # fmt: skip
"""First bytes -> what a file is that holds no weights of torch."""
ATTEMPTS = 100
"""Readings of one file, each with a stand-in more."""
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError)
"""What torch raises at a file that it does not read."""


def read_checkpoint(path: Path) -> Any:
    """Return what a file of weights holds, on the CPU: tensors by name, or these inside of what a training script saved.

    Raises:
        WeightsError: it is missing, damaged, no file of weights, or names what might do harm; says what it is instead.
    """
    try:
        return _safetensors(path) if kind_of(path) == "safetensors" else _unpickled(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from None


def _weights_in(folder: Path) -> str:
    suffixes = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(suffixes))
    return f", which holds {', '.join(names[:5])}" if names else ""


def kind_of(path: Path) -> str:
    """Return "safetensors" or "pickle" by what a file begins with, whatever its name.

    Raises:
        WeightsError: it is neither, or not there; says what it is, and the way out.
        OSError: it cannot be opened.
    """
    if path.is_dir():
        raise WeightsError(f"{path} is a folder{_weights_in(path)}. Give --weights one file.")
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}. Give --weights FILE, or --weights random:SEED.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        raise WeightsError(f"{path} is empty (0 bytes): the download or the copy did not happen. Fetch the file again.")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path} is a pointer of Git LFS ({size} bytes of text), not the weights: the repository was cloned without its "
            "large files. Run `git lfs pull` there, or download the file itself."
        )
    if text.startswith(PAGE):
        raise WeightsError(
            f"{path} is a web page (HTML), not weights: the link leads to a page about the file, to a login or to an error. "
            "Download the file itself (on a hub, the address with /resolve/ in place of /blob/)."
        )
    if len(start) > 8 and start[8:9] == b"{" and 8 + int.from_bytes(start[:8], "little") <= max(size, 2**20):
        return "safetensors"
    if path.suffix == ".safetensors" and start.startswith((b"PK", b"\x80")):
        raise WeightsError(
            f"{path} cannot be read as safetensors: torch.save wrote it, or it is an archive. Rename it to .pth."
        )
    if start.startswith(b"PK"):
        _check_archive(path, size)
    elif not start.startswith(b"\x80"):
        raise WeightsError(
            f"{path} is no file of weights: {_seen(start)}. Give safetensors, or a state dict saved by torch.save."
        )
    return "pickle"


def _seen(start: bytes) -> str:
    named = next((name for magic, name in OTHER.items() if start.startswith(magic)), None)
    if start[257:262] == b"ustar":
        named = "a tar archive"
    if named:
        return f"it is {named}"
    if b"weight_map" in start or b'"metadata"' in start:
        return "it is the index of weights in several files; load these, and save one state dict of all"
    printable = start.decode("utf-8", "replace").strip()
    if ("\ufffd" not in printable and printable.isprintable()) or ("\n" in printable and "\0" not in printable):
        return f"it is text that begins with {printable.splitlines()[0][:40]!r}"
    return f"it begins with the bytes {start[:8].hex(' ')}"


def _check_archive(path: Path, size: int) -> None:
    """Refuse zip archives that `torch.save` did not write."""
    if not zipfile.is_zipfile(path):
        raise WeightsError(
            f"{path} is damaged or cut off: it begins as torch.save writes, and its end is not there ({size} bytes). "
            "Compare the size with that of the source, and download it again."
        )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("constants.pkl") for name in names):
        raise WeightsError(
            f"{path} is a TorchScript archive, which holds code. Save its state_dict() as safetensors instead."
        )
    if not any(name.endswith("data.pkl") for name in names):
        what = "arrays of NumPy, as JAX models are saved" if any(n.endswith(".npy") for n in names) else "other files"
        raise WeightsError(
            f"{path} is a zip archive of {what} ({', '.join(names[:3])}), not of torch.save. "
            "Give the weights as safetensors or as a state dict of torch."
        )


def _safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(
            f"{path} cannot be read as safetensors: it is damaged or cut off ({error}). Download it again."
        ) from None


def _unpickled(path: Path) -> Any:
    """Return what `torch.save` wrote, with stand-ins for objects of other classes than torch reads by itself."""
    stand_ins = _foreseen(path)
    for _ in range(ATTEMPTS):
        try:
            with torch.serialization.safe_globals([(made, name) for name, made in stand_ins.items()]):
                return torch.load(path, map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            if not _add_stand_in(stand_ins, str(error)):
                raise WeightsError(_refusal(path, str(error))) from None
    raise WeightsError(f"{path} was not read: it holds more than tensors, objects of more than {ATTEMPTS} classes.")


def _foreseen(path: Path) -> dict[str, Any]:
    """Return stand-ins for all that an archive names, so that its tensors are read once; {} where it cannot be told."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except UNREADABLE:  # written before torch 1.6, or damaged: reading it tells
        return {}
    return {name: made for name in names if (made := _stand_in(name)) is not None}


def _add_stand_in(stand_ins: dict[str, Any], message: str) -> bool:
    """Add or change the stand-in that `torch.load` lacked; return whether there is anything new to try."""
    if found := re.search(r"GLOBAL (\S+) was not an allowed global", message):
        name = found[1] if "." in found[1] else f"builtins.{found[1]}"
        made = None if name in stand_ins else _stand_in(name)
        stand_ins |= {} if made is None else {name: made}
        return made is not None
    if "numpy.dtypes." in message and "numpy.dtypes.Float64DType" not in stand_ins:
        stand_ins |= DTYPES
        return True
    # torch fills nothing but dicts and lists themselves, so that these stand in for what is filled like them
    found = re.search(r"Can only (SETITEM|append).*but got <class '(?:\w+\.)*?_checkpoint_files\.(.+?)'>", message)
    if found is None or found[2] not in stand_ins:
        return False
    stand_ins[found[2]] = _maker(OrderedDict if found[1] == "SETITEM" else list)
    return True


def _stand_in(name: str) -> Any:
    """Return what is to be called in place of a class of this name; None where the file must be refused."""
    root, dot, _ = name.partition(".")
    if root == "numpy":
        return _of_numpy(name)
    if not dot or (name not in PLAIN and (root == "torch" or root in sys.stdlib_module_names)):
        return None
    return type(name, (_StandIn,), {"__module__": __name__})


class _StandIn:
    """In place of an object of a training script: it takes whatever it is given, and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _maker(kind: type) -> type:
    """Return a class whose objects are plain ones of `kind`, empty whatever they are made from."""
    return type("Maker", (), {"__new__": lambda _, *__, **___: kind()})


def _of_numpy(name: str) -> Any:
    last = name.rpartition(".")[2]
    if last in NUMPY and name in (f"numpy.{last}", f"numpy.core.multiarray.{last}", f"numpy._core.multiarray.{last}"):
        return getattr(np, last, None) or getattr(np._core.multiarray, last)
    kind = DTYPES.get(name) or getattr(np, last, None)
    return kind if isinstance(kind, type) and issubclass(kind, (np.generic, np.dtype)) else None


def _refusal(path: Path, message: str) -> str:
    found = re.search(r"GLOBAL (\S+)", message)
    if not found:
        reason = message.partition("WeightsUnpickler error:")[2].strip() or message
        return (
            f"{path} was not read: it is damaged, or holds more than tensors ({reason.splitlines()[0]}). Download it again, or "
            "load it in the program that made it and save model.state_dict() alone."
        )
    name = found[1] if "." in found[1] else f"builtins.{found[1]}"
    kind = "part of a whole module, saved with its code" if name.startswith("torch.nn.") else "code"
    return (
        f"{path} was not read: it holds more than tensors: {name}, which is {kind}. Where you made it yourself, load it in "
        "the program that did, and save model.state_dict() alone."
    )
