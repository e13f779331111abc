"""What every method of the room promises; the suite runs over its files, so that a new one is held to it without an edit."""

from __future__ import annotations

import copy
import inspect

import pytest
import timm
import torch
from torch import nn

from featurecache.errors import BackboneError, ConfigError, RunError
from featurecache.peft import PEFT, adapt, load_adapted, save_adapted

SIZE = 96
"""Six patches a side of the small transformer: methods that shrink the grid take four of them."""

IDENTITY = {"name": "timm:test_vit", "architecture": {"drop_path_rate": 0.1}, "weights": "a", "precision": "fp32"}


def plain(seed: int = 0, name: str = "test_vit", depth: int = 3) -> nn.Module:
    """Return a small model, a transformer of `depth` blocks, that has its weights; the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(name, **({"img_size": SIZE, "depth": depth} if "vit" in name else {})).eval()


def pictures(seed: int = 1) -> torch.Tensor:
    return torch.randn(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def said(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return what a module of timm gives a classifier, by its own interface alone."""
    with torch.no_grad():
        return module.forward_head(module.forward_features(images), pre_logits=True)


def directed(embedding: torch.Tensor) -> torch.Tensor:
    """Return a loss of (B, D) that a final norm does not make constant."""
    return (embedding * torch.randn(embedding.shape, generator=torch.Generator().manual_seed(5))).sum(1).mean()


def moved(name: str):
    """Return a method after three steps, with the module as it was before."""
    before, adapted = plain(), adapt(name, plain(), {})
    if adapted.trainable:
        step = torch.optim.SGD(adapted.parameters().values(), lr=0.05)
        adapted.train(True)
        for _ in range(3):
            step.zero_grad()
            directed(adapted.embed(pictures())).backward()
            step.step()
        adapted.train(False)
    return before, adapted


class MethodContract:
    def test_its_file_says_its_rate_and_its_options_have_defaults(self, name):
        room = PEFT.load(name)
        first, *options = inspect.signature(room.apply).parameters.values()

        assert isinstance(room.LEARNING_RATE, float) and room.LEARNING_RATE >= 0
        assert room.__doc__ and inspect.getdoc(room.apply)
        assert first.name == "module"
        assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in options)

    def test_unknown_options_are_told_together(self, name):
        with pytest.raises(ConfigError) as refused:
            adapt(name, plain(), {"no_such_thing": 1, "nor_this": 2})

        assert len(refused.value.problems) == 2
        assert f"method {name} has no option 'nor_this'" in refused.value.problems[1]

    def test_the_keys_and_values_of_the_backbone_stay_what_they_are(self, name):
        before, adapted = plain().state_dict(), adapt(name, plain(), {})

        own = adapted.module.state_dict()

        assert [key for key in own if key in before] == list(before)
        assert all(torch.equal(own[key], value) for key, value in before.items())

    @pytest.mark.parametrize(
        "model", ["test_vit", "test_vit2"]
    )  # the latter has a register, LayerScale, no class token
    def test_at_the_start_it_says_what_the_backbone_says_where_it_promises_so(self, name, model):
        adapted = adapt(name, plain(name=model), {})
        if not getattr(PEFT.load(name), "STARTS_AS_BACKBONE", True):
            pytest.skip(f"{name} does not promise it")

        assert torch.equal(said(adapted.module, pictures()), said(plain(name=model), pictures()))

    def test_a_copy_of_the_module_is_whole(self, name):
        _, adapted = moved(name)

        other = copy.deepcopy(adapted.module)
        before = said(adapted.module, pictures())
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()

        assert torch.equal(said(adapted.module, pictures()), before)
        assert not torch.equal(said(other, pictures()), before)

    def test_it_trains_what_it_names_and_nothing_else(self, name):
        before, adapted = moved(name)
        own = adapted.module.state_dict()

        named = {key for key, p in adapted.module.named_parameters() if p.requires_grad}
        changed = {key for key, value in before.state_dict().items() if not torch.equal(value, own[key])}

        assert named == set(adapted.trainable)
        assert all(0 < factor <= 1 for factor in adapted.trainable.values())
        assert changed <= set(adapted.kept)
        assert set(adapted.trainable) <= set(adapted.kept)
        assert (PEFT.load(name).LEARNING_RATE > 0) == bool(adapted.trainable)

    def test_every_trained_value_moves(self, name):
        adapted = adapt(name, plain(), {})
        before = {key: p.detach().clone() for key, p in adapted.parameters().items()}
        if not before:
            assert adapted.embed(pictures()).requires_grad is False
            return

        adapted.train(True)
        step = torch.optim.SGD(adapted.parameters().values(), lr=0.1)
        for seed in range(3):
            step.zero_grad()
            directed(adapted.embed(pictures(seed))).backward()
            step.step()

        assert not [key for key, p in adapted.parameters().items() if torch.equal(p, before[key])]

    @pytest.mark.parametrize("model", ["test_vit", "test_vit_relpos", "test_resnet", "test_efficientnet"])
    def test_embed_is_what_the_module_says_and_as_wide_as_it_tells(self, name, model):
        try:
            adapted = adapt(name, plain(name=model), {})
        except BackboneError as refused:
            assert "It can take: " in str(refused) and model != "test_vit"
            assert name not in str(refused).partition("It can take: ")[2].rstrip(".").split(", ")
            return

        found = adapted.embed(pictures())

        assert found.shape == (6, adapted.dim)
        assert torch.equal(found.detach(), said(adapted.module, pictures()))

    def test_it_tells_how_many_tokens_each_block_is_given(self, name):
        adapted, seen = adapt(name, plain(), {}), []
        for block in adapted.module.blocks:
            block.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))

        adapted.embed(pictures())

        assert tuple(seen) == adapted.tokens_per_layer

    def test_frozen_blocks_stay_in_eval_mode(self, name):
        adapted = adapt(name, plain(), {})

        adapted.train(True)
        training = {key for key, part in adapted.module.named_modules() if part.training}
        adapted.train(False)

        learning = {key.rpartition(".")[0] for key in adapted.trainable}
        frozen = {key.rpartition(".")[0] for key, p in adapted.module.named_parameters() if not p.requires_grad}
        if not learning:
            assert not training
        assert not {part for part in training & (frozen - learning) if "drop_path" not in part and "head" not in part}
        assert not any(part.training for part in adapted.module.modules())

    def test_its_state_brings_back_what_it_says(self, name):
        _, adapted = moved(name)
        other = adapt(name, plain(), {})

        other.load(adapted.state())

        assert torch.equal(said(other.module, pictures()), said(adapted.module, pictures()))

    def test_scaling_goes_from_the_backbone_to_the_trained_bits(self, name):
        before, adapted = moved(name)
        trained = said(adapted.module, pictures())

        adapted.scale(0.0)
        none = said(adapted.module, pictures())
        adapted.scale(0.5)
        half = said(adapted.module, pictures())
        adapted.scale(1.0)

        torch.testing.assert_close(none[:, adapted.wider :], said(before, pictures()))
        assert not none[:, : adapted.wider].any()
        assert torch.equal(said(adapted.module, pictures()), trained)
        assert torch.equal(half, trained) == torch.equal(none, trained)

    def test_merged_a_plain_model_says_the_same(self, name):
        _, adapted = moved(name)
        if adapted.merge is None:
            pytest.skip(f"{name} cannot be folded in")
        trained, fresh = said(adapted.module, pictures()), plain(seed=9)

        adapted.merge()
        own = adapted.module.state_dict()
        fresh.load_state_dict({key: own[key] for key in fresh.state_dict()})

        torch.testing.assert_close(said(fresh, pictures()), trained, rtol=1e-5, atol=1e-5)

    def test_a_file_holds_what_was_trained_alone_and_brings_it_back(self, name, tmp_path):
        _, adapted = moved(name)
        module = plain()

        save_adapted(tmp_path, adapted, name, {}, IDENTITY)
        state = torch.get_rng_state()
        again = load_adapted(tmp_path, module, {**IDENTITY, "architecture": {}, "precision": "bf16"})

        assert again is not None and again.module is module
        assert torch.equal(said(module, pictures()), said(adapted.module, pictures()))
        assert set(again.state()) == set(adapted.kept)
        assert torch.equal(torch.get_rng_state(), state), "loading draws from the global generator"

    def test_a_file_of_another_backbone_or_a_damaged_one_is_refused(self, name, tmp_path):
        _, adapted = moved(name)
        save_adapted(tmp_path, adapted, name, {}, IDENTITY)
        (path,) = tmp_path.iterdir()

        with pytest.raises(RunError, match="trained in another backbone:\n  weights: 'a' there, 'b' here"):
            load_adapted(tmp_path, plain(), {**IDENTITY, "weights": "b"})
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(RunError, match="cannot be read .* Train the run again"):
            load_adapted(tmp_path, plain(), IDENTITY)
