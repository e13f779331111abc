"""The published head beyond its recorded numbers: where it starts, what it drops, what it keeps in memory, what travels."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from featurecache.errors import ConfigError, RunError
from heads import HeadSpec
from heads._checkpoint import build_head, load_head, refusals, save_head
from heads.lfa_clip import CONSTANTS, build
from pipelines.objectives.cross_entropy import build as objective_of
from pipelines.training.stack import Stack
from tests.heads.samples import CLASSES, TOWER, batches, joined, spec_of

MAPS = {"image": ("query", "key", "value"), "text_self": ("query", "key", "value"), "text_cross": ("key", "value")}


def spec_with(**constants: Tensor) -> HeadSpec:
    spec = spec_of(widths=TOWER, constants=CONSTANTS)
    return replace(spec, constants={**spec.constants, **{f"text/{k}": v for k, v in constants.items()}})


def built(**options):
    torch.manual_seed(0)
    return build_head("lfa_clip", spec_with(), options)


def layers() -> dict[str, Tensor]:
    return dict(joined(batches(widths=TOWER)).arrays)


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation gave, backward too."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        sizes = [one.numel() for one in tree_leaves(found) if isinstance(one, Tensor)]
        self.elements = max([self.elements, *sizes])
        return found


@pytest.mark.parametrize("start", ["few-shot", "dg"])
def test_it_starts_at_the_projections_of_clip(start):
    head, spec = built(start=start), spec_with()
    projections = {"image": spec.constants["text/image_projection"][0]}

    for part, names in MAPS.items():
        projection = projections.get(part, spec.constants["text/projection"][0])
        for name in names:
            weight = head.get_parameter(f"{part}.{name}.weight")
            assert torch.equal(weight, projection.T) == (start == "dg" or name == "value")
            assert weight.requires_grad


def test_the_rest_of_the_published_start_is_uniform_within_the_inverse_root_of_the_width():
    weight = built().get_parameter("image.query.weight")

    assert weight.abs().max() <= 8**-0.5 and weight.std().item() == pytest.approx(8**-0.5 / 3**0.5, rel=0.2)


def test_the_trained_values_of_a_vit_b_16_are_the_2490368_that_were_published():
    sizes = {"eot": (12, 2, 1, 512), "image_projection": (1, 768, 512), "projection": (1, 512, 512)}
    constants = {f"text/{name}": torch.zeros(shape) for name, shape in sizes.items()}
    spec = HeadSpec(
        shapes={f"layers/cls/{n:02d}": (768,) for n in range(12)}, num_classes=2,
        constants={**constants, "text/logit_scale": torch.zeros(1, 1, 1)},
    )  # fmt: skip

    assert sum(p.numel() for p in build(spec).parameters()) == 3 * 768 * 512 + 5 * 512 * 512 == 2_490_368


@pytest.mark.parametrize("training", [True, False])
def test_no_tensor_of_every_image_class_and_dimension_is_ever_made(training):
    rows, classes, templates, text_layers, width, joint = 64, 40, 2, 5, 32, 256
    draw = torch.Generator().manual_seed(0)
    sizes = {
        "eot": (text_layers, classes, templates, 24),
        "image_projection": (1, width, joint),
        "projection": (1, 24, joint),
    }
    constants = {f"text/{name}": torch.randn(shape, generator=draw) for name, shape in sizes.items()}
    spec = HeadSpec(
        shapes={f"layers/cls/{n:02d}": (width,) for n in range(3)}, num_classes=classes,
        constants={**constants, "text/logit_scale": torch.zeros(1, 1, 1)},
    )  # fmt: skip
    head = build(spec).train(training)
    arrays = {name: torch.randn(rows, width, generator=draw) for name in spec.shapes}

    with Largest() as seen:
        logits = head(arrays)
        if training:
            logits.square().mean().backward()

    assert logits.shape == (rows, classes)
    assert seen.elements <= classes * templates * text_layers * joint < rows * classes * joint


def test_many_rows_are_weighed_in_pieces_with_the_same_logits(monkeypatch):
    head = built().eval()
    whole = head(layers())

    monkeypatch.setattr("heads.lfa_clip.PIECE", 100)

    torch.testing.assert_close(head(layers()), whole)


def test_weights_of_layers_sum_to_one_on_every_side():
    head = built().eval()

    seen, rows = head.attended(layers()), len(layers()["layers/cls/00"])

    assert head.attention(layers()).shape == (rows, 3)
    assert seen.cross_weights.shape == (rows, CLASSES, 2, 4) and seen.own_weights.shape == (CLASSES, 2, 4)
    for weights in (head.attention(layers()), seen.cross_weights, seen.own_weights):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_training_drops_elements_of_both_sides_and_dg_drops_none():
    few_shot, dg = built().train(), built(start="dg").train()

    assert not torch.equal(few_shot(layers()), few_shot(layers()))
    assert torch.equal(dg(layers()), dg(layers()))
    for part in ("image_dropout", "text_dropout"):
        one = built().train()
        one.get_submodule(part).p = 0.0
        assert not torch.equal(one(layers()), one(layers())), "the other side is still dropped"


def test_a_low_rank_trains_beside_the_frozen_maps_and_does_not_start_at_them():
    whole, low = built(start="dg").eval(), built(start="dg", rank=2).eval()

    trained = {name for name, p in low.named_parameters() if p.requires_grad}

    assert {name.rsplit(".", 2)[1] for name in trained} == {"down", "up"} and len(trained) == 16
    assert sum(p.numel() for n, p in low.named_parameters() if n in trained) == 3 * 2 * (8 + 16) + 5 * 2 * (6 + 16)
    assert torch.equal(low.get_parameter("image.key.weight"), whole.get_parameter("image.key.weight"))
    assert not torch.allclose(low(layers()), whole(layers()), atol=1e-3)


def test_the_text_side_may_have_other_layers_than_the_image_and_one_of_each_is_enough():
    spec = spec_of(widths={"layers/cls/00": 8}, constants=CONSTANTS)
    one = replace(spec, constants={**spec.constants, "text/eot": spec.constants["text/eot"][:1, :, :1]})

    torch.manual_seed(0)
    logits = build(one).eval()({"layers/cls/00": torch.randn(3, 8)})

    assert logits.shape == (3, CLASSES)


def test_what_is_learned_serves_other_classes():
    head, others = built().eval(), spec_with(eot=torch.randn(4, 7, 2, 6))
    wider = build(replace(others, num_classes=7)).eval()

    wider.load_state_dict(head.state_dict())
    same = build(spec_with()).eval()
    same.load_state_dict(wider.state_dict())

    assert wider(layers()).shape[1] == 7
    assert torch.equal(same(layers()), head(layers()))


@pytest.fixture
def adapter(tmp_path):
    """The run folder of a `clip_adapter`."""
    spec = spec_of(widths={"projected": 16}, constants=("text/embedding", "text/logit_scale"))
    torch.manual_seed(1)
    head = build_head("clip_adapter", spec, {"reduction": 2, "ratio": 0.3})
    (tmp_path / "adapter").mkdir()
    save_head(tmp_path / "adapter", head, "clip_adapter", spec, {"reduction": 2, "ratio": 0.3})
    return tmp_path / "adapter"


def test_an_adapter_stands_frozen_behind_the_image_and_travels_with_the_head(adapter, tmp_path):
    plain, head = built().eval(), built(adapter=str(adapter)).eval()
    trained = load_head(adapter)[0].adapter

    assert torch.equal(head.attended(layers()).query, plain.attended(layers()).query), "the query is as it was"
    assert not torch.allclose(head(layers()), plain(layers()), atol=1e-3)
    torch.testing.assert_close(head.adapter(torch.ones(1, 16)), trained(torch.ones(1, 16)))
    assert not [name for name, p in head.named_parameters() if name.startswith("adapter") and p.requires_grad]
    expected = head(layers())
    save_head(tmp_path, head, "lfa_clip", spec_with(), {"adapter": str(adapter)})
    shutil.rmtree(adapter)
    assert torch.equal(load_head(tmp_path)[0](layers()), expected)


def test_runs_that_are_no_adapter_are_refused(adapter, tmp_path):
    save_head(tmp_path, built(), "lfa_clip", spec_with(), {})

    assert refusals("lfa_clip", spec_with(), {"adapter": str(adapter)}) == []
    with pytest.raises(ConfigError, match="holds no clip_adapter, but LayerAggregation. Train one"):
        built(adapter=str(tmp_path))
    with pytest.raises(RunError, match="holds no head that can be read"):
        built(adapter=str(tmp_path / "nowhere"))
    narrow = spec_with(image_projection=torch.randn(1, 8, 5), projection=torch.randn(1, 6, 5))
    with pytest.raises(ConfigError, match="is 16 wide, the joint space 5: it is of another model"):
        build_head("lfa_clip", narrow, {"adapter": str(adapter)})


def test_options_out_of_range_are_told_together():
    with pytest.raises(ConfigError) as refused:
        build(spec_with(), beta=1.5, dropout=1.0, rank=0, adapter_width=-1)

    assert [problem.split(" ")[0] for problem in refused.value.problems] == ["beta", "dropout", "rank", "adapter_width"]


def test_arrays_of_another_model_or_other_classes_are_refused_with_the_way_out():
    lacking = replace(spec_with(), constants={"text/eot": torch.randn(4, CLASSES, 2, 6)})
    wide = replace(spec_with(), shapes={"layers/cls/00": (6,), "layers/cls/01": (8,)})

    with pytest.raises(
        ConfigError, match=r"needs text/image_projection, text/projection, text/logit_scale, .*--extend"
    ):
        build(lacking)
    with pytest.raises(ConfigError, match="as wide as the 8 of CLIP's projection, .*got layers/cls/00 6. Take lfa"):
        build(wide)
    with pytest.raises(ConfigError, match="text/eot speaks of 3 classes, and there are 4"):
        build(spec_with(eot=torch.randn(4, 3, 2, 6)))
    with pytest.raises(ConfigError, match="the texts have 7 dimensions, their projection takes 6"):
        build(spec_with(eot=torch.randn(4, CLASSES, 2, 7)))
    with pytest.raises(ConfigError, match="the projections end in 16 and 5 dimensions, not in one space"):
        build(spec_with(projection=torch.randn(1, 6, 5)))


@pytest.mark.parametrize("options", [{}, {"start": "dg", "rank": 2}])
def test_a_stack_trains_with_dropout_and_every_head_moves_in_its_own_way(options):
    heads = [built(**options) for _ in range(3)]
    stack, batch = Stack(heads), joined(batches(widths=TOWER))
    stack.train(True)

    logits = stack(batch.arrays)
    torch.vmap(lambda one: objective_of("classification")({"logits": one}, batch).total)(logits).sum().backward()

    assert logits.shape == (3, len(batch), CLASSES)
    assert not torch.equal(logits[0], logits[1]), "they start alike, and drop other elements"
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in stack.values.values())
