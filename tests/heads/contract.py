"""What every head promises; the suite runs over the files of the room, so that a new head is held to it without an edit."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from featurecache.errors import ConfigError, RunError
from featurecache.features import FeatureBatch, Task
from heads import HEADS, ClosedForm, HeadSpec
from heads._checkpoint import build_head, load_head, refusals, save_head
from pipelines.objectives.cross_entropy import build as objective_of
from pipelines.training.stack import Stack
from tests.heads.samples import LAYERS, READ, READ_BESIDE_TEXTS, TASKS, Shapes, batches, joined, spec_of


def read_by(name: str) -> Shapes:
    """Return arrays that the head can read."""
    room = HEADS.load(name)
    return {**READ, **READ_BESIDE_TEXTS}[room.CONSUMES] if getattr(room, "CONSTANTS", ()) else READ[room.CONSUMES]


def asked(name: str, task: Task = "classification", parts: Sequence[FeatureBatch] = ()) -> HeadSpec:
    """Return a spec that the head is content with, standardised by the batches where it standardises."""
    room = HEADS.load(name)
    standardised = parts if getattr(room, "STANDARDISED", True) else ()
    return spec_of(task, read_by(name), standardised_by=standardised, constants=getattr(room, "CONSTANTS", ()))


def built(name: str, spec: HeadSpec, seed: int = 0) -> nn.Module:
    """Build a head; skip where it says, naming the task, that it cannot do the task."""
    torch.manual_seed(seed)
    try:
        return build_head(name, spec, {})
    except ConfigError as refused:
        assert spec.task in str(refused), f"{name} refuses {spec.task} without naming it: {refused}"
        pytest.skip(f"{name} says that it cannot do {spec.task}")


def ready(name: str, task: Task, *, standardised: bool = True) -> tuple[nn.Module, HeadSpec, list]:
    """Return (head as training begins, its spec, its batches)."""
    parts = batches(task, read_by(name))
    spec = asked(name, task, parts if standardised else ())
    head = built(name, spec)
    if hasattr(head, "solve"):
        head.solve(parts)
    return head, spec, parts


def standardised(parts: Sequence[FeatureBatch]) -> dict[str, Tensor]:
    """Return the arrays of the first batch; each feature has mean 0 and deviation 1 over all rows and positions."""
    found = {}
    for name, values in joined(parts).arrays.items():
        flat = values.reshape(-1, values.shape[-1]).double()
        found[name] = ((parts[0].arrays[name] - flat.mean(0)) / flat.std(0, correction=0)).float()
    return found


def trained(head: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in head.named_parameters() if p.requires_grad}


class HeadContract:
    def test_its_file_says_what_it_reads_and_the_rate_it_trains_with(self, name):
        room = HEADS.load(name)

        assert room.CONSUMES in READ
        assert isinstance(room.LEARNING_RATE, float) and room.LEARNING_RATE >= 0
        assert room.__doc__ and inspect.getdoc(room.build)

    def test_its_options_are_named_and_have_defaults(self, name):
        first, *options = inspect.signature(HEADS.load(name).build).parameters.values()

        assert first.name == "spec"
        assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in options)

    @pytest.mark.parametrize("task", TASKS)
    def test_logits_have_a_column_for_every_class(self, name, task):
        head, spec, parts = ready(name, task)

        logits = head(parts[0].arrays)

        assert logits.shape == (len(parts[0]), spec.num_classes)
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()

    @pytest.mark.parametrize("task", TASKS)
    def test_training_moves_every_trained_value(self, name, task):
        head, _, parts = ready(name, task)
        before = {key: value.detach().clone() for key, value in trained(head).items()}
        if not before:
            read = getattr(HEADS.load(name), "CONSTANTS", ())
            assert hasattr(head, "solve") or read, f"{name} is neither trained nor solved, and reads no class"
            return
        step = torch.optim.SGD(trained(head).values(), lr=0.1)

        for _ in range(3):
            step.zero_grad()
            objective_of(task)({"logits": head(joined(parts).arrays)}, joined(parts)).total.backward()
            step.step()

        assert not [key for key, value in trained(head).items() if torch.equal(value, before[key])]

    def test_the_same_seed_gives_the_same_start(self, name):
        spec = asked(name)

        one, other = built(name, spec, seed=7).state_dict(), built(name, spec, seed=7).state_dict()

        assert all(torch.equal(one[key], other[key]) for key in one)

    def test_unknown_options_are_told_together(self, name):
        with pytest.raises(ConfigError) as refused:
            build_head(name, asked(name), {"no_such_thing": 1, "nor_this": 2})

        assert len(refused.value.problems) == 2
        assert f"head {name} has no option 'nor_this'" in refused.value.problems[1]

    def test_a_mistyped_option_is_answered_with_the_nearest(self, name):
        for option in list(inspect.signature(HEADS.load(name).build).parameters)[1:]:
            with pytest.raises(ConfigError, match=f"has no option '{option}x'. Did you mean '{option}'"):
                build_head(name, asked(name), {f"{option}x": 1})

    def test_trying_whether_it_can_be_built_draws_no_random_number(self, name):
        state = torch.random.get_rng_state()

        assert refusals(name, asked(name), {}) == []
        assert len(refusals(name, asked(name), {"nor_this": 2})) == 1
        assert torch.equal(torch.random.get_rng_state(), state)

    @pytest.mark.parametrize("task", TASKS)
    def test_a_checkpoint_brings_back_the_same_bits(self, name, task, tmp_path):
        head, spec, parts = ready(name, task)
        spec = replace(spec, constants={**spec.constants, "text/other": torch.randn(4, 1, 3)})

        save_head(tmp_path, head, name, spec, {})
        state = torch.random.get_rng_state()
        again, known = load_head(tmp_path)

        assert torch.equal(again(parts[0].arrays), head.eval()(parts[0].arrays))
        assert not again.training
        assert torch.equal(torch.random.get_rng_state(), state), "loading draws from the global generator"
        assert (known.shapes, known.task, known.num_classes) == (dict(spec.shapes), task, spec.num_classes)
        assert torch.equal(known.constants["text/other"], spec.constants["text/other"])

    def test_a_checkpoint_is_safetensors_and_json_and_no_pickle(self, name, tmp_path):
        head, spec, _ = ready(name, "classification")

        save_head(tmp_path, head, name, spec, {})

        assert sorted(path.name for path in tmp_path.iterdir()) == ["head.json", "head.safetensors"]
        assert json.loads((tmp_path / "head.json").read_text())["head"] == name
        content = (tmp_path / "head.safetensors").read_bytes()
        length = int.from_bytes(content[:8], "little")
        held = {*head.state_dict(), *(f"constants.{name}" for name in spec.constants)}
        assert set(json.loads(content[8 : 8 + length])) - {"__metadata__"} == held

    def test_a_damaged_checkpoint_is_refused(self, name, tmp_path):
        head, spec, _ = ready(name, "classification")
        save_head(tmp_path, head, name, spec, {})

        for file in ("head.safetensors", "head.json"):
            whole = (tmp_path / file).read_bytes()
            (tmp_path / file).write_bytes(whole[: len(whole) // 2])
            with pytest.raises(RunError, match="holds no head that can be read .* Train it again"):
                load_head(tmp_path)
            (tmp_path / file).write_bytes(whole)
        assert isinstance(load_head(tmp_path)[0], nn.Module)

    def test_values_of_another_head_are_refused(self, name, tmp_path):
        head, spec, _ = ready(name, "classification")
        save_head(tmp_path, head, name, spec, {})
        facts = json.loads((tmp_path / "head.json").read_text())
        (tmp_path / "head.json").write_text(json.dumps({**facts, "num_classes": spec.num_classes + 1}))

        with pytest.raises(RunError, match="holds no head that can be read"):
            load_head(tmp_path)

    def test_standardising_is_part_of_the_head(self, name):
        head, spec, parts = ready(name, "classification")
        if not spec.statistics:
            pytest.skip(f"{name} reads features as they are")
        plain = built(name, replace(spec, statistics={}))
        plain.load_state_dict({k: v for k, v in head.state_dict().items() if k in plain.state_dict()})
        by_hand = standardised(parts)

        said = head.eval()(parts[0].arrays)
        assert torch.allclose(said, plain.eval()(by_hand), atol=1e-5 * max(1.0, float(said.detach().abs().max())))

    def test_what_it_says_of_a_row_does_not_depend_on_the_others(self, name):
        head, _, parts = ready(name, "classification")
        some = {key: value[5:9] for key, value in parts[0].arrays.items()}

        assert torch.allclose(head.eval()(some), head(parts[0].arrays)[5:9], atol=1e-5)

    def test_the_mean_of_unequal_widths_is_refused(self, name):
        if len(read_by(name)) == 1:
            pytest.skip(f"{name} reads one array")
        spec = replace(spec_of(widths=LAYERS, constants=asked(name).constants), combine="mean")

        with pytest.raises(ConfigError, match="different widths have no mean|does not apply"):
            build_head(name, spec, {})

    def test_arrays_that_are_no_vectors_are_refused_with_the_tokens_to_ask_for(self, name):
        if HEADS.load(name).CONSUMES == "tokens":
            pytest.skip(f"{name} reads tokens")
        spec = replace(asked(name), shapes={"layers/patch-grid/05": (4, 8)}, statistics={})

        with pytest.raises(ConfigError, match="has 2 axes a row .* Give --tokens cls or mean"):
            build_head(name, spec, {})

    def test_it_leaves_the_batch_as_it_was(self, name):
        parts = batches(widths=read_by(name))
        head = built(name, asked(name))
        before = {key: value.clone() for key, value in parts[0].arrays.items()}

        if hasattr(head, "solve"):
            head.solve(parts)
        head(parts[0].arrays)

        assert all(torch.equal(value, before[key]) for key, value in parts[0].arrays.items())

    @pytest.mark.parametrize("task", TASKS)
    def test_solving_several_together_gives_what_each_gives_alone(self, name, task):
        room = HEADS.load(name)
        if not hasattr(room, "solve_together"):
            pytest.skip(f"{name} is not solved with others")
        parts = batches(task, read_by(name))
        spec = asked(name, task, parts)
        together, alone = (
            [built(name, one, 3) for one in (spec, spec, replace(spec, statistics={}))] for _ in range(2)
        )

        said = room.solve_together(together, parts)

        told = [head.solve(parts) if isinstance(head, ClosedForm) else {} for head in alone]
        assert said == [pytest.approx(one, rel=1e-6) for one in told]
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one(parts[0].arrays), other(parts[0].arrays), rtol=1e-4, atol=1e-4)

    def test_several_of_them_make_a_stack_that_says_what_each_says(self, name):
        parts = batches(widths=read_by(name))
        spec = asked(name, parts=parts)
        heads = [built(name, spec, seed).eval() for seed in range(3)]
        for number, head in enumerate(heads):
            if hasattr(head, "solve"):
                head.solve(batches(widths=read_by(name), seed=number))
        alone = torch.stack([head(parts[0].arrays) for head in heads])

        stack = Stack(heads)
        stack.train(False)

        assert torch.allclose(stack(parts[0].arrays), alone, atol=1e-5)
