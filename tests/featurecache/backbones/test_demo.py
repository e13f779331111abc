"""The backbone in the package: one model, no download."""

from __future__ import annotations

import pytest

from featurecache.backbones import BackboneOptions, load_backbone
from featurecache.errors import BackboneError, ConfigError
from tests.featurecache.backbones.contract import BackboneContract


class TestDemo(BackboneContract):
    name = "demo"
    options = BackboneOptions()


class TestDemoWithoutTraining(BackboneContract):
    name = "demo"


def test_demo_takes_no_name():
    with pytest.raises(BackboneError, match="one model and takes no name, got 'large'"):
        load_backbone("demo:large")


@pytest.mark.parametrize("options", [{"architecture": {"depth": 2}}, {"image_size": 64}])
def test_demo_takes_no_other_shape(options):
    with pytest.raises(ConfigError, match="no architecture options, and images of 32 pixels only"):
        load_backbone("demo", BackboneOptions(**options))
