"""Run frozen foundation models once, keep the features of every layer, and train everything else from these.

>>> import featurecache as fc
>>> extracted = fc.extract_features("digits", backbone="demo", out="digits.zarr")
>>> trained = fc.train_head("digits.zarr", head="ridge", layers="concat", out="runs/ridge")
>>> predictor = fc.Predictor.load("runs/ridge")
>>> features, targets = fc.open_store("digits.zarr").X_y("embedding", split="test")

"digits" may be a folder with one folder per class, and "demo" any model of timm, such as "timm:vit_tiny_patch16_224".
Everything below is imported when it is first asked for. The verbs of the command line are functions of the same options;
they return what the command prints, and raise `FeatureCacheError` where it says "Error".

Inside, this package is the ground floor: data sets, backbones and features on disk, which know nothing of heads or
training. The rooms: `datasets` (images in), `backbones` (frozen models), `stores` (features on disk) and `sources`
(features to train on). Each room's `__init__` states its contract; a file of a room is one data set, backbone source or
store format. `heads` and `pipelines` stand beside it, and are reached as `featurecache.heads` and `featurecache.pipelines`.
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from featurecache import shadowing as _shadowing

if _TYPE_CHECKING:
    import heads as heads
    import logme as logme
    import pipelines as pipelines
    from featurecache.backbones import BackboneOptions as BackboneOptions
    from featurecache.backbones import load_backbone as load_backbone
    from featurecache.datasets import open_dataset as open_dataset
    from featurecache.errors import FeatureCacheError as FeatureCacheError
    from featurecache.runs import open_run as open_run
    from featurecache.sources.torch_datasets import FeatureDataset as FeatureDataset
    from featurecache.sources.torch_datasets import FeatureStream as FeatureStream
    from featurecache.stores import open_store as open_store
    from heads import HEADS as HEADS
    from logme import LogME as LogME
    from pipelines.estimator import HeadClassifier as HeadClassifier
    from pipelines.predict import Predictor as Predictor

__version__ = "0.1.0"

_OBJECTS = {
    "BackboneOptions": "backbones",
    "FeatureCacheError": "errors",
    "FeatureDataset": "sources.torch_datasets",
    "FeatureStream": "sources.torch_datasets",
    "HEADS": "heads",
    "HeadClassifier": "pipelines.estimator",
    "LogME": "logme",
    "Predictor": "pipelines.predict",
    "load_backbone": "backbones",
    "open_dataset": "datasets",
    "open_run": "runs",
    "open_store": "stores",
}
"""Name -> module of this package that has it."""

_VERBS = (
    "analyze", "check_data", "compare_peft", "convert", "delete", "embed", "evaluate", "export", "export_backbone",
    "extract_features", "find_leaks", "info", "merge", "plan", "predict", "rank_layers", "report", "run_protocol",
    "split_store", "train_head", "train_online", "train_student", "verify",
)  # fmt: skip
"""Functions of `verbs`."""

__all__ = [
    "__version__",
    *sorted([*_OBJECTS, *_VERBS, "heads", "logme", "pipelines"]),
]

_shadowing.install_finder()


def __getattr__(name: str) -> _Any:
    """Import what is asked for; it is kept, so that this is asked once for each name."""
    if name in _shadowing.NAMES:
        return _importlib.import_module(f"{__name__}.{name}")
    if name in _OBJECTS:
        found = getattr(_importlib.import_module(f"{__name__}.{_OBJECTS[name]}"), name)
    elif name in _VERBS:
        found = _importlib.import_module(f"{__name__}.verbs").make_function(name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return what can be asked for, imported or not."""
    return sorted({*globals(), *__all__})
