"""What every backbone promises. A member's test names it, and inherits; see `second_route` for the other derivation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from featurecache.backbones import Backbone, BackboneOptions, Request, load_backbone
from featurecache.errors import BackboneError
from featurecache.features import layer_array
from tests.featurecache.backbones.second_route import embedding_of, features_of, images_for, registers_of

CELLS = 3
"""Divides few map sides, so that the overlapping cells of a grid are tested too."""


class EmbeddingContract:
    """The promises of every backbone, whether it has layers or not."""

    name: ClassVar[str]
    options: ClassVar[BackboneOptions] = BackboneOptions(weights="random:0")
    changes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "other weights": {"weights": "random:1"},
        "transform": {"transform": {"mean": 0.25}},
        "norm": {"norm": "none"},
        "precision": {"precision": "bf16"},
    }
    """What makes other features -> the options that ask for it."""
    embedding_tolerance: ClassVar[float] = 0.0
    """Bit for bit, but for a second derivation with other operations."""

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls) -> Backbone:
        return load_backbone(cls.name, cls.options)

    @pytest.fixture(scope="class")
    @classmethod
    def images(cls, backbone: Backbone) -> Tensor:
        return images_for(backbone)

    def embedding_again(self, module: nn.Module, images: Tensor) -> Tensor:
        """Return (B, D) straight from the module."""
        return embedding_of(module, images)

    def test_it_is_frozen_and_in_eval_mode(self, backbone):
        assert not [name for name, p in backbone.module.named_parameters() if p.requires_grad]
        assert not [name for name, m in backbone.module.named_modules() if m.training]

    def test_the_embedding_is_the_pre_logits_vector(self, backbone, images):
        embedding = backbone.forward(images, Request())["embedding"]

        assert embedding.shape == (2, backbone.dim) and embedding.dtype == torch.float32
        again = self.embedding_again(backbone.module, images)
        torch.testing.assert_close(embedding, again, rtol=self.embedding_tolerance, atol=self.embedding_tolerance)

    def test_features_carry_no_gradient(self, backbone, images):
        assert not backbone.forward(images, Request())["embedding"].requires_grad

    def test_a_pass_leaves_weights_and_random_numbers_alone(self, backbone, images):
        before = {name: value.clone() for name, value in backbone.module.state_dict().items()}
        state = torch.get_rng_state()

        backbone.forward(images, Request())

        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, before[name]) for name, value in backbone.module.state_dict().items())

    def test_the_transform_makes_an_input_of_any_picture(self, backbone):
        inputs = [backbone.transform(Image.new("RGB", size, "teal")) for size in ((40, 300), (1, 1))]

        assert {(tuple(i.shape), i.dtype) for i in inputs} == {(backbone.input_size, torch.float32)}

    def test_the_identity_survives_a_trip_through_json(self, backbone):
        assert json.loads(json.dumps(backbone.identity)) == backbone.identity

    def test_whatever_changes_features_changes_the_identity(self, backbone):
        others = {
            what: load_backbone(self.name, dataclasses.replace(self.options, **change)).identity
            for what, change in self.changes.items()
        }

        identities = [json.dumps(identity, sort_keys=True) for identity in (backbone.identity, *others.values())]
        assert len(set(identities)) == len(self.changes) + 1

    def test_the_origin_builds_an_equal_backbone_without_moving_a_generator(self, backbone, images):
        origin = json.loads(json.dumps(backbone.origin))
        state = torch.get_rng_state()

        again = load_backbone(origin.pop("name"), BackboneOptions(**origin))

        assert torch.equal(torch.get_rng_state(), state)
        assert (again.name, again.identity, again.layers) == (backbone.name, backbone.identity, backbone.layers)
        assert torch.equal(
            again.forward(images, Request())["embedding"], backbone.forward(images, Request())["embedding"]
        )


class BackboneContract(EmbeddingContract):
    """The promises of a backbone whose layers can be had."""

    @pytest.fixture(scope="class")
    @classmethod
    def everything(cls, backbone: Backbone) -> Request:
        kinds = tuple(f"patch-grid:{CELLS}" if kind.startswith("patch-grid") else kind for kind in backbone.tokens)
        layers = tuple(layer.index for layer in backbone.layers)
        return Request(layers, kinds, logits=backbone.num_logits > 0, projected=backbone.projected_dim > 0)

    @pytest.fixture(scope="class")
    @classmethod
    def features(cls, backbone: Backbone, images: Tensor, everything: Request) -> dict[str, Tensor]:
        return backbone.forward(images, everything)

    def features_again(self, module: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """Return every kind of token of every layer straight from the module, with grids of CELLS."""
        return features_of(module, images, CELLS)

    def tower(self, module: nn.Module) -> nn.Module:
        """Return the part of a module that holds the final norm and the registers."""
        return module

    def test_it_lists_its_layers_in_order(self, backbone):
        assert [layer.index for layer in backbone.layers] == list(range(len(backbone.layers)))
        assert len(backbone.layers) >= 2

    def test_every_array_asked_for_comes_in_its_shape(self, backbone, features, everything):
        expected = {"embedding": (2, backbone.dim)}
        expected |= {"logits": (2, backbone.num_logits)} if everything.logits else {}
        expected |= {"projected": (2, backbone.projected_dim)} if everything.projected else {}
        tails = {"patch-grid": (CELLS * CELLS,), "register": (registers_of(self.tower(backbone.module)),), "all": None}
        for layer in backbone.layers:
            for kind in (token.partition(":")[0] for token in everything.tokens):
                name = layer_array(kind, layer.index)
                tail = tails.get(kind, ())
                expected[name] = (2, *(features[name].shape[1:2] if tail is None else tail), layer.width)

        assert {name: tuple(values.shape) for name, values in features.items()} == expected
        assert {values.dtype for values in features.values()} == {torch.float32}

    def test_every_token_of_every_layer_equals_a_second_derivation(self, backbone, images, features):
        expected = self.features_again(backbone.module, images)

        assert {name for name in features if name.startswith("layers/")} == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(
                features[name], values, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )

    def test_the_norm_is_named_where_the_width_is_the_final_one(self, backbone):
        found, tower = {layer.width: layer.norm for layer in backbone.layers}, self.tower(backbone.module)
        final = [
            name for name in ("norm", "fc_norm", "ln_post") if list(getattr(tower, name, nn.Identity()).parameters())
        ]
        width = getattr(tower, final[0]).weight.shape[0] if final else None

        assert found == {layer.width: final[0] if layer.width == width else "none" for layer in backbone.layers}

    def test_logits_are_those_of_the_model(self, backbone, images, features):
        if not backbone.num_logits:
            assert "logits" not in features
            return

        with torch.no_grad():
            assert torch.equal(features["logits"], backbone.module(images))

    def test_a_projection_is_refused_where_there_is_none(self, backbone, images):
        if backbone.projected_dim:
            assert backbone.forward(images, Request(embedding=False, projected=True)).keys() == {"projected"}
            return

        with pytest.raises(BackboneError, match="shares no space with texts"):
            backbone.forward(images, Request(projected=True))

    def test_a_request_for_one_layer_gives_the_numbers_of_a_request_for_all(
        self, backbone, images, features, everything
    ):
        for layers in ((0,), (len(backbone.layers) - 1,)):
            found = backbone.forward(images, Request(layers, everything.tokens, embedding=False))

            assert len(found) == len(everything.tokens)
            assert [name for name, values in found.items() if not torch.equal(values, features[name])] == []

    def test_the_embedding_is_the_same_with_layers_and_without(self, backbone, images, features):
        assert torch.equal(backbone.forward(images, Request())["embedding"], features["embedding"])

    def test_a_row_does_not_depend_on_its_batch(self, backbone, images, features, everything):
        alone = backbone.forward(images[1:], everything)

        for name, values in alone.items():
            torch.testing.assert_close(values, features[name][1:], rtol=1e-3, atol=1e-4)

    def test_a_kind_of_token_that_does_not_exist_is_refused_with_the_known(self, backbone, images):
        with pytest.raises(BackboneError, match="no kind of token called 'patches'. Known: cls, register, mean, all"):
            backbone.forward(images, Request((0,), ("patches",), embedding=False))

    def test_a_class_token_comes_from_models_that_have_one_only(self, backbone, images):
        if "cls" in backbone.tokens:
            assert backbone.forward(images, Request((0,), ("cls",), embedding=False)).keys() == {"layers/cls/00"}
            return

        with pytest.raises(BackboneError, match="no class token, so --tokens cls cannot be had. Give --tokens mean"):
            backbone.forward(images, Request((0,), ("cls",), embedding=False))

    def test_registers_come_from_models_that_have_them_only(self, backbone, images):
        if "register" in backbone.tokens:
            (found,) = backbone.forward(images, Request((0,), ("register",), embedding=False)).values()
            assert found.shape[1] == registers_of(self.tower(backbone.module)) > 0
            return

        with pytest.raises(BackboneError, match="no registers, so --tokens register cannot be had. Leave it out"):
            backbone.forward(images, Request((0,), ("register",), embedding=False))
