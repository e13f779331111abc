"""Heads as estimators of scikit-learn's kind: `HeadClassifier(head="ridge").fit(X, y)`, on arrays or on a store.

They are built, solved and trained as by the verb `train-head`, so that everything of scikit-learn that takes a
classifier (`clone`, `cross_val_score`, `GridSearchCV`, pipelines) takes the heads of this project too.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.errors import ConfigError
from featurecache.places import Url
from featurecache.sources.cached import CachedSource
from featurecache.sources.in_memory import InMemory
from featurecache.sources.statistics import shrink_deviations
from featurecache.stores import FeatureStore, open_store
from featurecache.threads import suited_threads
from heads import HEADS, ClosedForm, HeadSpec
from heads._checkpoint import build_head
from pipelines._arrays import compare_stored, select_arrays
from pipelines._caller_arrays import read_features, read_labels
from pipelines._roles import read_store_in_roles
from pipelines._rows import every_training_row, labelled_rows, trainable
from pipelines.objectives.cross_entropy import build as cross_entropy
from pipelines.training.convergence import describe_improving
from pipelines.training.fitting import fit
from pipelines.training.outputs import outputs_of
from pipelines.training.recipe import Recipe, usual_epochs
from pipelines.training.stack import Member
from pipelines.training.training import SOLVING_BATCH

ONLY = "embedding"
"""Name of an array that is given without one."""

NO_LABELS = (
    "y is missing: HeadClassifier requires y to be passed, but the target y is None. Give one label a row, or a store, "
    "which knows its labels"
)
Features = npt.ArrayLike | Mapping[str, Any] | str | Path | Url | FeatureStore
"""(N, D) values; array name -> (N, ...) values, shallow to deep; or a store, or where one is."""


class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A head of this project as a classifier of scikit-learn; see `__init__` for what can be set.

    `X` is (N, D): an array, a list, a tensor or a data frame; a mapping of array names to such values, shallow to deep, or
    to tokens (N, T, D); or a store, whose training rows `fit` takes and whose test rows everything else takes.

    Attributes:
        classes_: (C,) the labels, sorted; of a store its class names.
        n_features_in_: features of a row, of all arrays together.
        feature_names_in_: names of the columns, where `X` was a data frame.
        names_: names of the arrays.
        head_: the trained module.
        chosen_: what a closed form chose, such as its penalty.
        best_epoch_: epoch whose values were kept; 0: those of the closed form.
        history_: one entry an epoch.
    """

    def __init__(
        self,
        head: str = "logistic",
        *,
        epochs: int | None = None,
        lr: float | None = None,
        weight_decay: float = 0.01,
        batch_size: int = 256,
        standardise: bool = True,
        validation: float = 0.1,
        layers: str | None = None,
        tokens: str = "auto",
        seed: int = 0,
        device: str = "cpu",
        **options: Any,
    ) -> None:
        """Note the settings; they are those of `train-head`, and checked by `fit`.

        Args:
            head: its name, such as "logistic", "ridge", "linear", "knn" or "lfa"; `featurecache list heads` lists them.
            epochs: passes over the rows, for a head that is trained by steps; None: as many as make 1000 steps, but at
                least 50 and at most 1000. 0: what its closed form gives, untrained.
            lr: learning rate at its highest; None: the head's own.
            weight_decay: decoupled weight decay of AdamW.
            batch_size: rows of a step.
            standardise: whether features are brought to mean 0 and standard deviation 1, by the rows of `fit`; of a store by
                all its training rows.
            validation: share of the rows, between 0 and 1, that are held out to choose the best epoch by, where the head is
                trained by steps; a store has validation rows of its own.
            layers: layers of a store, as `--layers`: "last", "all", or indices such as "0,3,6-11"; None: the head's own.
            tokens: kinds of token of a store, as `--tokens`: "auto", or such as "cls+mean".
            seed: seed of the initial values, of dropout, of the order of the rows and of the choice of validation rows.
            device: device to train on: "cpu", "cuda", "cuda:1".
            **options: options of the head, such as `k=5` of "knn"; `featurecache list heads` names them. They are parameters
                of the estimator, which `GridSearchCV` searches.
        """
        self.head, self.epochs, self.lr, self.weight_decay, self.batch_size = head, epochs, lr, weight_decay, batch_size
        self.standardise, self.validation, self.layers, self.tokens = standardise, validation, layers, tokens
        self.seed, self.device = seed, device
        self._set_options(options)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the head: every attribute that is neither a setting nor learned, so that `clone` sees them."""
        own = super().get_params(deep=False).keys()
        named = {
            name: value for name, value in vars(self).items()
            if name not in own and not name.startswith("_") and not name.endswith("_")
        }  # fmt: skip
        unfit: dict[str, Any] = vars(self).get("_unfit_options", {})
        return named | unfit

    def _set_options(self, options: Mapping[str, Any]) -> None:
        """Note options of the head; those named as something of the class are of no head, and are refused by `fit`."""
        for name, value in options.items():
            if hasattr(type(self), name) or name.startswith("_") or name.endswith("_"):
                self._unfit_options = {**vars(self).get("_unfit_options", {}), name: value}
            else:
                setattr(self, name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a pickle; of those made before, options stand in an entry of that name."""
        super().__setstate__({**state, **state.get("options", {})})
        self.__dict__.pop("options", None)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return every setting, the head's options too."""
        return {**super().get_params(deep), **self.options}

    def set_params(self, **params: Any) -> HeadClassifier:
        """Change settings or options of the head."""
        own = super().get_params(deep=False).keys()
        self._set_options({name: value for name, value in params.items() if name not in own})
        for name in own & params.keys():
            setattr(self, name, params[name])
        return self

    def fit(self, X: Features, y: npt.ArrayLike | None = None) -> HeadClassifier:
        """Train on arrays and labels, or on the training rows of a store.

        Raises:
            ConfigError: settings, arrays or labels that cannot work; lists all problems.
            UnknownNameError: there is no such head.
            StoreError: the store cannot be used so.
        """
        with suited_threads(_row_count(X)):
            return self._fitted(X, y)

    def _fitted(self, X: Features, y: npt.ArrayLike | None) -> HeadClassifier:
        room = HEADS.load(self.head)
        check(
            (self.epochs is None or self.epochs >= 0, f"epochs must not be negative, got {self.epochs}"),
            (self.lr is None or self.lr > 0, f"lr must be positive, got {self.lr}"),
            (0 < self.validation < 1, f"validation must be a share between 0 and 1, got {self.validation}"),
        )
        train, validation, combine = self._from_store(X, room) if _is_store(X) else self._from_arrays(X, y)
        first = next(iter(train.batches(1))).arrays
        self.shapes_ = {name: tuple(values.shape[1:]) for name, values in first.items()}
        self.n_features_in_ = sum(values[0].numel() for values in first.values())
        spec = HeadSpec(
            shapes=self.shapes_, num_classes=len(self.classes_),
            combine=combine, constants=_constants(room, train, self.head),
        )  # fmt: skip
        values = sum(math.prod(shape) for shape in spec.shapes.values())
        with torch.random.fork_rng(), suited_threads(len(train), values=values):
            torch.manual_seed(self.seed)
            self._train(room, spec, train, validation)
        return self

    def _from_store(self, X: Any, room: Any) -> tuple[CachedSource, CachedSource | None, Any]:
        store = _opened(X)
        if store.header.task != "classification":
            raise ConfigError([f"{store.path} holds a {store.header.task} task; train it with train-head"])
        arrays, combine = select_arrays(store.header, room.CONSUMES, self.layers, self.tokens, compare_stored(store))
        train, validation = (CachedSource(store, arrays, labelled_rows(store, split)) for split in ("train", "val"))
        check(*trainable(train))
        self.classes_ = np.array(store.header.class_names)
        self.names_ = arrays
        return train, validation if len(validation) else None, combine

    def _from_arrays(self, X: Any, y: Any) -> tuple[InMemory, InMemory | None, Any]:
        if y is None:
            raise ConfigError([NO_LABELS])
        arrays = read_features(self, X, ONLY, reset=True)
        labels = read_labels(y, len(next(iter(arrays.values()))))
        self.classes_, targets = np.unique(labels, return_inverse=True)
        self.names_ = tuple(arrays)
        return InMemory(arrays, torch.from_numpy(targets.astype(np.int64))), None, "concat"

    def _train(self, room: Any, spec: HeadSpec, train: Any, validation: Any) -> None:
        """Build the head, solve it where it has a closed form, and train what is left to be trained."""
        options = {**self.options}
        spec = replace(spec, converge=len(train) <= getattr(room, "CONVERGES", 0) and self._leaves_steps_open())
        probe = build_head(self.head, spec, options)
        learns = self.epochs != 0 and any(p.requires_grad for p in probe.parameters())
        if learns and isinstance(train, InMemory):
            train, validation = self._parted(train)
        if self.standardise and getattr(room, "STANDARDISED", True):
            every = every_training_row(train) if isinstance(train, CachedSource) else train
            spec = replace(spec, statistics=shrink_deviations(every.statistics(), len(train)))
        torch.manual_seed(self.seed)
        head = build_head(self.head, spec, options)
        member = Member(head, self.lr or room.LEARNING_RATE or 0.0, self.weight_decay, None, torch.get_rng_state())
        chosen_on = None if validation is None else validation.walk(SOLVING_BATCH)
        self.chosen_ = head.solve(train.walk(SOLVING_BATCH), chosen_on) if isinstance(head, ClosedForm) else {}
        epochs = usual_epochs(len(train), self.batch_size) if self.epochs is None else self.epochs
        recipe = Recipe(epochs=epochs, batch_size=self.batch_size, data_seed=self.seed, device=self.device)
        fit([member], train, validation, cross_entropy("classification").to(self.device), recipe, "classification")
        self.head_: nn.Module = head
        self.best_epoch_, self.history_ = member.best_epoch, member.history
        if member.still_improving:
            warnings.warn(describe_improving(self.head, 1, 1), ConvergenceWarning, stacklevel=3)

    def _leaves_steps_open(self) -> bool:
        """Return whether nothing is said of how the head is trained, so that one with an optimum is brought there."""
        said = inspect.signature(HeadClassifier).parameters
        return all(getattr(self, name) == said[name].default for name in ("epochs", "lr", "weight_decay", "batch_size"))

    def _parted(self, train: InMemory) -> tuple[InMemory, InMemory | None]:
        """Return the rows to learn from and those to choose by; None where the classes are too small to be parted."""
        labels = train.targets[torch.from_numpy(train.rows)].numpy()
        held = max(round(self.validation * len(labels)), len(self.classes_))
        if np.bincount(labels).min() < 2 or len(labels) - held < len(self.classes_):
            return train, None
        parts = train_test_split(train.rows, test_size=held, stratify=labels, random_state=self.seed)
        learned, kept = (InMemory(train.arrays, train.targets, np.sort(part)) for part in parts)
        return learned, kept

    def decision_function(self, X: Features) -> npt.NDArray[np.float32]:
        """Return (N, C) logits, of arrays or of the test rows of a store.

        With two classes (N,), the log odds of `classes_[1]`: above 0 it is predicted.
        """
        logits = self._outputs(X)[0]
        return logits if len(self.classes_) > 2 else logits[:, 1] - logits[:, 0]

    def _outputs(self, X: Features) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return ((N, C) logits, (N,) targets, which are 0 where `X` knows none)."""
        check_is_fitted(self, "head_")
        source: InMemory | CachedSource
        if _is_store(X):
            store = _opened(X)
            source = CachedSource(store, self.names_, labelled_rows(store, "test"))
        else:
            name = self.names_[0] if len(self.names_) == 1 else ONLY  # an array without a name is the only one there is
            arrays = read_features(self, X, name, reset=False)
            self._check_shapes({name: tuple(values.shape[1:]) for name, values in arrays.items()})
            source = InMemory(arrays, torch.zeros(len(next(iter(arrays.values()))), dtype=torch.int64))
        with suited_threads(len(source)):
            logits, targets = outputs_of(self.head_, source, self.device)
        return logits.numpy(), targets.numpy()

    def _check_shapes(self, given: Mapping[str, tuple[int, ...]]) -> None:
        if set(given) != set(self.names_):
            raise ConfigError([f"it was fitted on {', '.join(self.names_)}, but X has {', '.join(given)}"])
        check(
            *(
                (
                    given[name] == shape,
                    f"it was fitted on {name} with rows of the shape {shape}, but X has {given[name]}",
                )
                for name, shape in self.shapes_.items()
            )
        )

    def predict_proba(self, X: Features) -> npt.NDArray[np.float32]:
        """Return (N, C) probabilities in the order of `classes_`."""
        found: npt.NDArray[np.float32] = torch.from_numpy(self._outputs(X)[0]).softmax(-1).numpy()
        return found

    def predict(self, X: Features) -> npt.NDArray[Any]:
        """Return (N,) labels, of arrays or of the test rows of a store."""
        best = self._outputs(X)[0].argmax(-1)
        found: npt.NDArray[Any] = self.classes_[best]
        return found

    def score(self, X: Features, y: npt.ArrayLike | None = None, sample_weight: npt.ArrayLike | None = None) -> float:
        """Return the accuracy; without `y`, on the test rows of a store."""
        if y is not None:
            return float(super().score(X, y, sample_weight))
        if not _is_store(X):
            raise ConfigError([NO_LABELS])
        logits, targets = self._outputs(X)
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        return float(np.average(logits.argmax(-1) == targets, weights=weights))


def _is_store(X: Any) -> bool:
    return isinstance(X, (str, Path, Url)) or hasattr(X, "header")


def _row_count(X: Any) -> int:
    """Return how many rows X has, 0 where it is none of the things that have rows."""
    if _is_store(X):
        return int(_opened(X).header.rows)
    first = next(iter(X.values()), ()) if isinstance(X, Mapping) else X
    if isinstance(first, Sequence):
        return len(first)
    return int(next(iter(getattr(first, "shape", ())), 0))


def _opened(X: Any) -> FeatureStore:
    """Return a store, of which `val` is the test where it has no other."""
    return read_store_in_roles(X if hasattr(X, "header") else open_store(X), None)[0]


def _constants(room: Any, train: Any, name: str) -> dict[str, Tensor]:
    needed = getattr(room, "CONSTANTS", ())
    lacking = [array for array in needed if array not in train.constants]
    if lacking:
        raise ConfigError(
            [f"the head {name} reads {', '.join(lacking)}: fit it on a store that was made with --prompts"]
        )
    return {array: train.constants[array] for array in needed}
