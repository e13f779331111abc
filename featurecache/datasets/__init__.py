"""Images in: one grammar for every place that images come from.

A file of this room answers `open(spec, ...) -> ImageDataset`; the file name is the prefix that users type
(`digits`, `image_folder:PATH`), and a plain path is recognised by what lies there.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from featurecache.errors import ConfigError, DatasetError, DatasetNotFoundError
from featurecache.features import Task
from featurecache.path_kinds import ARTIFACTS, STORES, explain_path, identify_path, suggest_path
from featurecache.registry import Registry
from featurecache.reports import Table, import_pandas
from featurecache.rgb_conversion import RgbConversion

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("featurecache")

DATASETS = Registry("data set", "featurecache.datasets")

SPLITS = ("train", "val", "test")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
MANIFESTS = (".csv", ".tsv", ".parquet")

Fingerprint = Literal["sizes", "content", "names"]
"""What the digest of a data set covers besides ids and targets: the size of every file, its bytes, or neither."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowTable:
    """What is known of every row before any image is opened. Row i is sample i of the data set, for ever."""

    sample_id: Sequence[str]
    """N stable, unique names: the path relative to the root, or a key."""
    target: npt.NDArray[Any]
    """(N,) int64 class, (N, K) uint8 multi-label or (N, K) float32 regression; -1 or NaN: unlabelled."""
    split: Sequence[str]
    """N of "train", "val", "test"; "" where the data has no labels to split by."""
    domain: Sequence[str]
    """N domain names, "" where there are none."""
    group: Sequence[str]
    """N group keys (patient, product, photograph): samples that must not be separated; "" where there are none."""

    def __len__(self) -> int:
        return len(self.sample_id)

    def __repr__(self) -> str:
        return f"<RowTable: {len(self)} rows>"

    def to_pandas(self, class_names: Sequence[str] = ()) -> Any:
        """Return the table as a `pandas.DataFrame`, one line for each row.

        Args:
            class_names: C names. Classes get a column `label` beside their number in `target`; several targets a row get one
                column each, by these names.

        Raises:
            FeatureCacheError: pandas is not installed.
        """
        pandas, target = import_pandas(), np.asarray(self.target)
        texts = {name: [str(text) for text in getattr(self, name)] for name in ("split", "domain", "group")}
        columns: dict[str, Any] = {"sample_id": [str(text) for text in self.sample_id]}
        if target.ndim == 1:
            names = np.array([*class_names, None], dtype=object)
            columns |= {"label": names[target]} if len(class_names) else {}
            columns["target"] = target
        else:
            named = class_names or range(target.shape[1])
            columns |= {f"target:{name}": target[:, place] for place, name in enumerate(named)}
        return pandas.DataFrame(columns | texts)


def in_no_file(row: int) -> None:
    """Say that the picture of a row is decoded from no file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """What lies with the pictures of a data set and is none, by relative path; hidden files aside."""

    files: Sequence[str] = ()
    folders: Sequence[str] = ()
    """The topmost of those that hold no picture."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ImageDataset:
    """A data set: its table, and how to read one image of it."""

    name: str
    """Short name for tables, e.g. "cifar10_5k"."""
    spec: str
    """What `open_dataset` needs to open it again."""
    table: RowTable
    class_names: tuple[str, ...]
    task: Task
    read: Callable[[int], Image]
    """Row -> decoded RGB image. Safe to call from several threads; raises `UnreadableSampleError`."""
    identity: Mapping[str, Any]
    """Changes whenever ids, targets, sizes or splits would: the fingerprint and the rule of the split."""
    content: Callable[[int], bytes | None] = in_no_file
    """Row -> the bytes of the file that `read` decodes, None where there is none; raises `UnreadableSampleError`."""

    measures: Sequence[str] = ()
    """What stands for every row in the fingerprint, besides id and target: size, digest or nothing, and given columns."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """Files and folders that gave no row."""

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"<ImageDataset {self.name}: {len(self)} images, {self.task}, {len(self.class_names)} classes>"

    def _repr_html_(self) -> str:
        """Return how many images each split has, for a notebook."""
        counts = Counter(str(split) for split in self.table.split)
        return Table(repr(self)[1:-1], ("split", "images"), [(k or "none", n) for k, n in counts.items()])._repr_html_()


class OpenDataset(Protocol):
    """What `open` in every file of this room must accept."""

    def __call__(
        self, spec: str, *, split_seed: int = 0, task: Task | None = None, fingerprint: Fingerprint = "sizes"
    ) -> ImageDataset:
        """Open the data set that `spec` (without the prefix) names.

        Raises:
            DatasetNotFoundError: nothing is there.
            DatasetError: it cannot be a data set, or not one of that task; the message lists every problem found.
        """


def open_dataset(
    spec: str | Path, *, split_seed: int = 0, task: Task | None = None, fingerprint: Fingerprint = "sizes"
) -> ImageDataset:
    """Open `spec`: a folder, a `.zip`/`.tar` of one, a manifest, or `NAME[:ARGUMENT]` for a file of this room.

    Rows without a split are divided 80/20 into train and test by a digest of the sample id (of the group where there is
    one), and 10 % of train becomes val likewise, also where train and val are given and no test: that val is the test then.
    Adding samples moves none of the others, but one: a class whose every sample (or group) would be drawn keeps one in
    train, and that one may leave it when the class grows. `PATH?splits=none` and `PATH?domains=folders` or `none` say how
    folders are read.
    `task` says how labels are read where they could be read in several ways; None: as they look.
    Behind a question mark may stand how pictures become RGB: `range=LOW..HIGH` (values of more than 8 bits that become 0
    and 255), `alpha=white` or `black` (a ground for transparent pictures).
    `fingerprint` "content" reads every file once, "names" looks at none; the identity says which, if not "sizes".

    Raises:
        DatasetNotFoundError, DatasetError, UnknownNameError.
    """
    log.info("reading the data set %s", spec)
    from featurecache.datasets._pixels import read_pixel_options, with_pixels

    bare, convert = read_pixel_options(str(spec))
    _refuse_artifact(bare, ARTIFACTS)
    name, argument = _resolve(bare)
    try:
        opened: ImageDataset = DATASETS.load(name).open(
            argument, split_seed=split_seed, task=task, fingerprint=fingerprint
        )
    except DatasetError:
        _refuse_artifact(bare, ("folder of runs", "folder of stores"))
        raise
    return with_pixels(opened, convert)


def _refuse_artifact(spec: str, kinds: Sequence[str]) -> None:
    """Refuse what this program wrote, a store or a run, where pictures are wanted.

    Raises:
        DatasetError: says what it is, and the command that would be right.
    """
    path = Path(spec)
    if path.suffix in STORES and not path.exists():
        raise DatasetNotFoundError(
            f"{spec} does not exist, and is named as a feature store is.{suggest_path(path, STORES)}"
        )
    if identify_path(path, pictures=False) in kinds and (why := explain_path(path, "data")):
        raise DatasetError(f"{spec} is not a data set: {why}.")


def fingerprint_of_rows(dataset: ImageDataset, rows: Sequence[int]) -> str:
    """Return the fingerprint that a data set of only these rows, in this order, would have."""
    from featurecache.datasets._fingerprint import fingerprint_of

    kind: Fingerprint = dataset.identity["fingerprint"].rpartition(":")[0] or "sizes"
    ids = [dataset.table.sample_id[row] for row in rows]
    measures = [dataset.measures[row] for row in rows]
    return fingerprint_of(kind, ids, measures, dataset.table.target[list(rows)], dataset.class_names)


def as_divided_before(dataset: ImageDataset, rule: str) -> ImageDataset:
    """Return the data set with the splits that older versions gave it, where a store says that rule; else itself."""
    from featurecache.datasets._splits import as_divided_before

    return as_divided_before(dataset, rule)


def open_pictures(path: Path) -> ImageDataset:
    """Open a folder or an archive as pictures without labels or splits, whatever its folders are called; ids are the paths.

    Raises:
        DatasetNotFoundError, DatasetError: nothing is there, no picture is in it, or it cannot be read.
    """
    from featurecache.datasets import archive, image_folder
    from featurecache.datasets._arranging import Reading

    opened = image_folder.open if path.is_dir() else archive.open
    return opened(str(path), fingerprint="names", reading=Reading(labels="none"))


def is_archive(path: Path) -> bool:
    """Return whether the name is that of an archive."""
    return path.name.lower().endswith(ARCHIVES)


def with_rgb_conversion(dataset: ImageDataset, convert: RgbConversion) -> ImageDataset:
    """Return a data set of files with its pictures converted so, unless its own spec says how; any other as it is."""
    read: Any = dataset.read
    own = getattr(read, "convert", None)
    return replace(dataset, read=replace(read, convert=convert)) if own == RgbConversion() else dataset


def read_image(path: Path, convert: RgbConversion | None = None) -> Image:
    """Return the picture in one file, RGB, decoded as those of a data set are.

    Raises:
        UnreadableSampleError: it cannot be read or decoded; names the path and the reason.
    """
    from featurecache.datasets.image_folder import FolderReader

    return FolderReader(Path(), [str(path)], convert or RgbConversion())(0)


def read_content(path: Path) -> bytes:
    """Return the bytes of one file, as `ImageDataset.content` does.

    Raises:
        UnreadableSampleError: it cannot be read; names the path and the reason.
    """
    from featurecache.datasets.image_folder import FolderReader

    return FolderReader(Path(), [str(path)]).content(0)


def _resolve(spec: str) -> tuple[str, str]:
    if not spec:
        raise ConfigError([f"no data set is named. Name a path, or NAME:ARGUMENT with NAME one of {_known()}"])
    prefix, colon, argument = spec.partition(":")
    path = Path(spec)
    if not path.exists() and prefix.replace("-", "_") in DATASETS.names():
        return prefix, argument
    place = Path(spec if path.exists() else spec.partition("?")[0])
    if place.suffix.lower() in MANIFESTS and not place.is_dir():
        return "manifest", spec
    if place.is_file() or (is_archive(place) and not place.is_dir()):
        return "archive", spec
    if place.is_dir() or "/" in spec or not colon:
        return "image_folder", spec
    raise ConfigError([f"{spec!r} is neither a path nor NAME:ARGUMENT with NAME one of {_known()}"])


def _known() -> str:
    return ", ".join(DATASETS.names())
