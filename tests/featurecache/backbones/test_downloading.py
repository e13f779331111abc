"""Weights that cannot be downloaded: said within seconds, whatever the network does; what is in a cache is found all the same."""

from __future__ import annotations

import http.server
import socket
import threading
import time
import urllib.request

import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from featurecache.backbones import BackboneOptions, _downloading, load_backbone
from featurecache.backbones._clip_text import lazy_tokenizer
from featurecache.errors import BackboneError, WeightsError

GCVIT = "timm:gcvit_xxtiny"
"""Its weights lie at an address of their own, and not on the hub."""


@pytest.fixture
def unresolved(monkeypatch):
    """Let no name of a host be resolved."""

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


@pytest.fixture
def silent(monkeypatch):
    """Let names be resolved never, as behind some firewalls, and places be given half a second."""
    over = threading.Event()

    def wait(*_: object, **__: object) -> None:
        over.wait(60)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    monkeypatch.setattr(_downloading, "PATIENCE", 0.5)
    yield
    over.set()


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("network", ["unresolved", "silent"])
@pytest.mark.parametrize(("name", "place"), [
    ("timm:test_resnet", "huggingface.co"), (GCVIT, "github.com"), ("open_clip:RN50-quickgelu/openai", "huggingface.co"),
])  # fmt: skip
def test_a_place_that_cannot_be_reached_is_said_within_seconds_with_the_way_out(network, name, place, request):
    timm.create_model("test_resnet")
    request.getfixturevalue(network)
    begin = time.perf_counter()

    with pytest.raises(
        WeightsError,
        match=rf"cannot be had from https://.*\({place} cannot be reached: .*\). Give --weights FILE, or --weights random",
    ):
        load_backbone(name)

    assert time.perf_counter() - begin < 10


@pytest.mark.parametrize("network", ["unresolved", "silent"])
def test_the_configuration_of_a_model_of_the_hub_is_missed_within_seconds(network, request):
    request.getfixturevalue(network)
    begin = time.perf_counter()

    with pytest.raises(
        BackboneError, match=r"huggingface.co cannot be reached: .* --weights FILE or --weights random:SEED"
    ):
        load_backbone("hf-hub:somebody/something")

    assert time.perf_counter() - begin < 10


def test_weights_in_the_cache_are_found_where_the_hub_cannot_be_reached(unresolved, tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    home = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    (home / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(state, home / "snapshots" / ("0" * 40) / "model.safetensors")
    begin = time.perf_counter()

    backbone = load_backbone("timm:test_resnet")

    assert all(torch.equal(value, state[name]) for name, value in backbone.module.state_dict().items())
    assert time.perf_counter() - begin < 10


def test_random_weights_and_files_ask_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(_downloading, "why_unreachable", lambda url: pytest.fail(f"{url} was asked for"))
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "x.safetensors")

    for weights in ("random:0", str(tmp_path / "x.safetensors")):
        load_backbone("timm:test_resnet", BackboneOptions(weights=weights))


def test_the_hub_is_itself_again_after_a_place_that_did_not_answer(unresolved):
    before = urllib.request.urlopen

    with (
        _downloading.reaching("https://example.org/x.pth") as reason,
        pytest.raises(OSError, match=r"example.org cannot be"),
    ):
        assert constants.HF_HUB_OFFLINE and "example.org cannot be reached" in reason
        torch.hub.load_state_dict_from_url("https://example.org/x.pth")

    assert urllib.request.urlopen is before is not None and torch.hub.urlopen is before
    assert not constants.HF_HUB_OFFLINE


def test_a_process_that_is_told_to_stay_offline_asks_no_hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(_downloading, "why_unreachable", lambda url: pytest.fail(f"{url} was asked for"))

    with pytest.raises(WeightsError, match=r"\(HF_HUB_OFFLINE is set\). Give --weights FILE"):
        load_backbone("timm:test_resnet")


@pytest.mark.parametrize(("status", "expected"), [(200, ""), (404, ""), (403, ""), (503, "it answers with status 503")])
def test_any_answer_but_being_out_of_service_says_that_a_place_can_be_reached(monkeypatch, status, expected):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        by_address = _downloading.why_unreachable(f"{place}/x.pth")
        monkeypatch.setattr(constants, "ENDPOINT", place)  # as HF_ENDPOINT sets it
        as_hub = _downloading.why_unreachable(f"{place}/x.pth")
        server.shutdown()

    assert {by_address, as_hub} == {f"127.0.0.1 cannot be reached: {expected}" if expected else ""}


def test_a_place_that_takes_connections_and_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(_downloading, "PATIENCE", 1.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        begin = time.perf_counter()
        reason = _downloading.why_unreachable(f"http://127.0.0.1:{server.getsockname()[1]}/x.pth")

    assert "127.0.0.1 cannot be reached" in reason and time.perf_counter() - begin < 5


def test_the_tokenizer_of_a_hub_is_missed_within_seconds(unresolved):
    tokenize = lazy_tokenizer(lambda: open_clip.get_tokenizer("ViT-B-16-SigLIP"))
    begin = time.perf_counter()

    with pytest.raises(
        BackboneError, match=r"tokenizer .* cannot be had \(huggingface.co cannot be reached: .* --prompts none"
    ):
        tokenize(["a cat"])

    assert time.perf_counter() - begin < 10
