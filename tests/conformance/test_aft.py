"""AFT and its kin against the recorded numbers of the original implementation, one test id for each fixture file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from featurecache.features import FeatureBatch
from featurecache.sources.joined import teacher_array
from heads import HeadSpec
from heads._checkpoint import build_head
from pipelines.objectives import OBJECTIVES, Dimensions, Guidance, guided
from pipelines.objectives._kernels import cosine_kernel, product_kernel
from pipelines.objectives.cross_entropy import build as likelihood
from pipelines.students.rows import published_split, whole_epochs
from pipelines.training.fitting import fit
from pipelines.training.recipe import Recipe
from pipelines.training.stack import Member
from tests.conformance.aft_student import FixedBatches

Arrays = dict[str, np.ndarray[Any, Any]]

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("FEATURECACHE_CONFORMANCE", REPOSITORY / ".." / "shared" / "conformance"))
FILES = sorted(FOLDER.glob("aft_*.npz"))
RTOL, ATOL = 1e-8, 1e-12
"""Relative to the largest entry of an array; the gradient of a bias before a centring is zero up to round-off."""

if not FILES:
    pytest.skip(
        f"no aft_*.npz in {FOLDER}; set FEATURECACHE_CONFORMANCE to the folder of fixtures",
        allow_module_level=True,
    )

ROWS = {"downstream_features", "pretrained_features", "feat_dims"}


def read(path: Path) -> Arrays:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values))


def objective(name: str, arrays: Arrays, **options: Any) -> Any:
    """Return a distance of this project for the widths of a file, in float64."""
    widths = tuple(arrays["feat_dims"].tolist())
    dimensions = Dimensions(arrays["downstream_features"].shape[1], widths)
    return OBJECTIVES.load(name).build(dimensions, **options).double()


def set_values(module: Any, values: dict[str, Any]) -> None:
    """Set parameters by name."""
    state = module.state_dict() | {name: tensor(value) for name, value in values.items()}
    module.load_state_dict(state)


def batch_of(arrays: Arrays) -> tuple[Tensor, FeatureBatch]:
    """Return (features that want a gradient, the batch with the rows of the teachers)."""
    features = tensor(arrays["downstream_features"]).requires_grad_()
    blocks = tensor(arrays["pretrained_features"]).split(arrays["feat_dims"].tolist(), dim=1)
    count = len(features)
    told = {teacher_array(place): rows for place, rows in enumerate(blocks)}
    return features, FeatureBatch(np.arange(count), [""] * count, torch.zeros(count, dtype=torch.int64), told)


def measured(distance: Any, arrays: Arrays) -> tuple[float, Tensor, dict[str, Tensor]]:
    """Return (loss, its gradient by the features, its gradients by what the distance learns)."""
    features, batch = batch_of(arrays)
    distance.zero_grad()
    total = distance({"embedding": features}, batch).total
    total.backward()
    assert features.grad is not None
    own = {name: p.grad for name, p in distance.named_parameters() if p.grad is not None}
    return total.item(), features.grad, own


def kernels(arrays: Arrays) -> Arrays:
    """Return what `aft_kernel_*_model` expects, by this project."""
    features, batch = batch_of(arrays)
    found: dict[str, Any] = {}
    distance = objective("aft", arrays)
    for ending, value in (("_init", arrays["s_init"]), ("", arrays["s"])):
        set_values(distance, {"s": value})
        found[f"loss{ending}"], found[f"grad_feat{ending}"], own = measured(distance, arrays)
        found[f"grad_s{ending}"] = own["s"]
    found["scale"] = torch.cat(distance.scales())
    found["K"], found["K_target"] = distance.kernels(features, distance.of_rows(batch))
    found |= {f"metric_{name}": value for name, value in distance.metrics().items()}
    both = guided("aft", distance_dimensions(arrays), guidance(float(arrays["prec"])), {}).double()
    set_values(both.distance, {"s": arrays["s"]})
    labels = {"embedding": features, "logits": torch.zeros(len(features), 2, dtype=torch.float64)}
    total, parts = both(labels, batch)
    found["weighted_loss"] = total - parts["likelihood"]
    for kernel, name in (("rbf", "s"), ("dense", "s_dense")):
        other = objective("aft", arrays, kernel=kernel)
        set_values(other, {"s": arrays[name]})
        found[f"loss_{kernel}"], found[f"grad_feat_{kernel}"], own = measured(other, arrays)
        found[f"grad_s_{kernel}"] = own["s"]
    return found


def distance_dimensions(arrays: Arrays) -> Dimensions:
    return Dimensions(arrays["downstream_features"].shape[1], tuple(arrays["feat_dims"].tolist()))


def guidance(prec: float, factor: float = 1.0) -> Guidance:
    return Guidance(likelihood=likelihood("classification"), prec=prec, prior_factor=factor)


def tensor_product(arrays: Arrays) -> Arrays:
    """Return what `aft_kernel_tensor_product` expects; both kernels are also taken without their product."""
    distance = objective("aft", arrays, kernel="product")
    set_values(distance, {"s": arrays["s"]})
    features, batch = batch_of(arrays)
    loss, of_features, own = measured(distance, arrays)
    ours, theirs = distance.kernels(features, distance.of_rows(batch))
    one, other = distance.scaled(distance.of_rows(batch))
    product = torch.einsum("bi,bj->bij", one, other).flatten(1)
    image, text = (tensor(arrays[f"{name}_features"]) for name in ("image", "text"))
    torch.testing.assert_close(theirs, cosine_kernel(tensor(arrays["target_product"])), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours, product_kernel(image, text), rtol=0, atol=1e-12)
    return {"loss": loss, "grad_feat": of_features, "grad_s": own["s"], "target_product": product}


TRANSLATOR = {
    f"ft_{kind}{n}": f"translator.{2 * n}.{name}" for n in range(3) for kind, name in (("w", "weight"), ("b", "bias"))
}
"""Array of a file -> name of a value of `factor_transfer`."""


def baselines(arrays: Arrays) -> Arrays:
    """Return what `aft_baselines_*` expects."""
    found: dict[str, Any] = {}
    for name, short in (("kd", "kd"), ("kernel_kd", "kkd"), ("feature_prior", "feature")):
        distance = objective(name, arrays)
        set_values(distance, {"map.weight": arrays[f"{short}_weight"], "map.bias": arrays[f"{short}_bias"]})
        found[f"{short}_loss"], found[f"{short}_grad_feat"], own = measured(distance, arrays)
        found |= {f"{short}_grad_{kind}": own[f"map.{kind}"] for kind in ("weight", "bias")}
    translator = objective("factor_transfer", arrays, paraphrase=False)
    set_values(translator, {own: arrays[name] for name, own in TRANSLATOR.items()})
    found["ft_loss"], found["ft_grad_feat"], _ = measured(translator, arrays)
    relational = objective("rkd", arrays)
    found["rkd_loss"], found["rkd_grad_feat"], _ = measured(relational, arrays)
    features, batch = batch_of(arrays)
    found["rkd_dist"], found["rkd_angle"] = relational.parts(features, relational.of_rows(batch))
    tuning = objective("b_tuning", arrays, temperature=float(arrays["bt_temperature"]))
    blocks = np.split(arrays["bt_teacher_m"], np.cumsum(arrays["feat_dims"])[:-1], axis=1)
    tuning.set(arrays["bt_student_m"], blocks, arrays["bt_scores"].tolist())
    found["bt_weights"] = tuning.shares
    found["bt_loss"], found["bt_grad_feat"], _ = measured(tuning, arrays)
    return found


def splits(arrays: Arrays) -> Arrays:
    """Return what `aft_split_indices` expects."""
    found: dict[str, Any] = {}
    for case in {name.split("_")[0] for name in arrays}:
        n, fraction, use_val = (arrays[f"{case}_{name}"].item() for name in ("n", "train_frac", "use_val"))
        parts = published_split(n, fraction, bool(use_val))
        found |= {
            f"{case}_{name}_indices": np.array(rows, int) for name, rows in zip(("train", "val"), parts, strict=True)
        }
    return found


def trajectory(arrays: Arrays, optimizer: str) -> Arrays:
    """Return what `aft_trajectory_*` expects, trained by the project's loop."""
    source, lr = FixedBatches(arrays), float(arrays["lr"])
    classes, width = arrays["init_classifier_weight"].shape
    head = build_head("linear", HeadSpec(shapes={"embedding": (width,)}, num_classes=classes), {}).double()
    own = dict(head.named_parameters())
    weight, bias = (next(name for name in own if name.endswith(kind)) for kind in ("weight", "bias"))
    set_values(head, {weight: arrays["init_classifier_weight"], bias: arrays["init_classifier_bias"]})
    dimensions = Dimensions(width, tuple(source.widths))
    factor = float(arrays["prior_lr"]) / lr
    aft = guided("aft", dimensions, guidance(float(arrays["prec"]), factor), {"learn_scales": True}).double()
    batches, size = arrays["y"].shape
    epochs = whole_epochs(int(arrays["steps_requested"]), batches * size, size)
    recipe = Recipe(epochs=epochs, batch_size=size, optimizer=optimizer, schedule="cosine_epochs", reshuffle=False)  # type: ignore[arg-type]
    said: list[tuple[float, float]] = []
    rates: dict[int, list[float]] = {}
    aft.register_forward_hook(
        lambda module, given, loss: said.append(
            (loss.parts["likelihood"].item(), (loss.total - loss.parts["likelihood"]).item())
        )
    )
    watch = register_optimizer_step_pre_hook(
        lambda one, *given: rates.setdefault(id(one.param_groups[0]["params"][0]), []).append(one.param_groups[0]["lr"])
    )
    try:
        fit([Member(head, lr, float(arrays["wd"]))], source, None, aft, recipe, "classification")
    finally:
        watch.remove()
    assert rates[id(own[weight])] == rates[id(source.body.weight)]
    return {
        "final_body_weight": source.body.weight, "final_body_bias": source.body.bias,
        "final_classifier_weight": own[weight], "final_classifier_bias": own[bias], "final_s": aft.distance.s,
        "step_ce": np.array(said)[:, 0], "step_weighted_prior": np.array(said)[:, 1],
        "step_lr_model": np.array(rates[id(own[weight])]), "step_lr_prior": np.array(rates[id(aft.distance.s)]),
    }  # fmt: skip


FAMILIES = {
    "K": (kernels, ROWS | {"s_init", "s", "s_dense", "prec"}),
    "target_product": (tensor_product, ROWS | {"image_features", "text_features", "s"}),
    "kd_loss": (
        baselines,
        ROWS | {*TRANSLATOR, "bt_scores", "bt_temperature", "bt_teacher_m", "bt_student_m"}
        | {f"{short}_{kind}" for short in ("kd", "kkd", "feature") for kind in ("weight", "bias")},
    ),
    "final_s": (
        trajectory,
        {"x", "pretrained_features", "y", "feat_dims", "lr", "prior_lr", "wd", "prec", "steps_requested"}
        | {f"init_{part}_{kind}" for part in ("body", "classifier") for kind in ("weight", "bias")},
    ),
    "case0_n": (splits, {"n", "train_frac", "use_val"}),
}  # fmt: skip
"""An array that only files of a form have -> (what computes all that such a file expects, its inputs)."""


def family_of(arrays: Arrays) -> tuple[Any, set[str]]:
    (mark,) = FAMILIES.keys() & arrays.keys()
    act, inputs = FAMILIES[mark]
    if act is splits:
        inputs = {name for name in arrays if name.partition("_")[2] in inputs}
    return act, inputs


def expected_in(arrays: Arrays) -> set[str]:
    return set(arrays) - family_of(arrays)[1]


def differences(arrays: Arrays, found: Arrays) -> dict[str, float]:
    """Return array -> largest difference in units of what is tolerated; raises where one is not compared."""
    assert set(found) == expected_in(arrays)
    far = {}
    for name, value in found.items():
        ours = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        assert ours.shape == arrays[name].shape, name
        size = float(np.abs(arrays[name]).max(initial=0))
        far[name] = float(np.abs(ours - arrays[name]).max(initial=0)) / (RTOL * size + ATOL)
    return far


def nearest(arrays: Arrays) -> dict[str, float]:
    """Return the differences; a recorded training does not say its optimiser, which is one of the two of the published code."""
    act, _ = family_of(arrays)
    if act is not trajectory:
        return differences(arrays, act(arrays))
    return min(
        (differences(arrays, trajectory(arrays, rule)) for rule in ("adam", "sgd")), key=lambda far: max(far.values())
    )


each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@each
def test_this_project_gives_what_the_original_gave(path):
    far = nearest(read(path))

    assert {name: value for name, value in far.items() if not value <= 1} == {}


@each
def test_one_changed_number_is_noticed_in_every_expected_array(path):
    arrays = read(path)
    act, _ = family_of(arrays)
    found = act(arrays) if act is not trajectory else None
    if found is None:
        rules = [trajectory(arrays, rule) for rule in ("adam", "sgd")]
        found = min(rules, key=lambda one: max(differences(arrays, one).values()))

    for name in expected_in(arrays):
        if arrays[name].size:
            other = arrays[name].copy()
            other.flat[-1] += max(1, abs(float(other.flat[-1])) * 0.01)

            assert differences({**arrays, name: other}, found)[name] > 1, name
