"""Whatever head is trained: as text over torch's operators it gives the same logits, for any number of images."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featurecache.errors import BackboneError
from featurecache.features import ArraySpec
from heads import HEADS, HeadSpec
from heads._checkpoint import build_head
from pipelines.exporting.graph import Program, graph_of, traced
from pipelines.exporting.onnx_file import write_onnx
from tests.heads.contract import read_by, ready
from tests.heads.samples import shapes_of

SIZE = (3, 4, 4)
COUNTS = (1, 4, 300)
"""Images of a pass: more than any head looks at together, where it goes in pieces."""


class Maps(nn.Module):
    """A backbone whose features are linear maps of the pixels, one an array."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = shapes
        self.maps = nn.ModuleList(nn.Linear(48, torch.Size(shape).numel()) for shape in shapes.values())

    def forward(self, images: Tensor, request: object) -> dict[str, Tensor]:
        flat = images.flatten(1)
        found = zip(self.shapes.items(), self.maps, strict=True)
        return {name: made(flat).reshape(-1, *shape) for (name, shape), made in found}


def program_of(head: nn.Module, shapes: dict[str, tuple[int, ...]], dtype: str = "float16") -> Program:
    module = Maps(shapes)
    arrays = [ArraySpec(name, shape, dtype) for name, shape in shapes.items()]
    backbone = SimpleNamespace(module=module, forward=module)
    return Program(backbone, head, arrays, ["cls"]).eval().requires_grad_(False)


def followed(program: Program, images: Tensor) -> tuple[Tensor, int | None]:
    """Return what the text of the graph gives, with nothing but its tensors, for passes of `COUNTS` images where it may."""
    found, batch = traced(program, SIZE)
    graph = graph_of(found, batch)
    names: dict[str, object] = {}
    exec(graph.source, names)
    tensors = [graph.tensors[name] for name in names["TENSORS"]]
    parts = images.split(list(COUNTS) if batch is None else batch)
    return torch.cat([names["forward"](*tensors, part)[0] for part in parts]), batch


def solved(name: str) -> tuple[Program, Tensor]:
    """Return a program that ends in a trained head, and the images of all passes."""
    head = ready(name, "classification")[0].eval()
    torch.manual_seed(0)
    return program_of(head, shapes_of(read_by(name))), torch.randn(sum(COUNTS), *SIZE)


@pytest.mark.parametrize("name", HEADS.names())
def test_every_head_gives_the_same_logits_as_a_graph_of_any_number_of_images(name):
    program, images = solved(name)

    logits, batch = followed(program, images)

    assert batch is None
    with torch.no_grad():
        torch.testing.assert_close(logits, program(images), rtol=1e-5, atol=1e-5 * float(logits.abs().max()))


@pytest.mark.parametrize("name", ["knn", "kernel", "lfa"])
def test_the_onnx_file_of_a_head_takes_any_number_of_images(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program, images = solved(name)

    write_onnx(traced(program, SIZE)[0], tmp_path / "model.onnx", {})

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for part in images.split(list(COUNTS)):
        (logits,) = session.run(["logits"], {"images": part.numpy()})
        with torch.no_grad():
            ours = program(part).numpy()
        np.testing.assert_allclose(logits, ours, rtol=1e-3, atol=1e-3 * np.abs(ours).max())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_features_are_rounded_as_the_store_rounds_them(dtype):
    shapes = {"layers/cls/00": (6,)}
    program = program_of(build_head("linear", HeadSpec(shapes=shapes, num_classes=3), {}).eval(), shapes, dtype)

    source = graph_of(*traced(program, SIZE)).source

    assert {name for name in ("float16", "bfloat16") if f"torch.{name}" in source} == {dtype} - {"float32"}


def test_only_tensors_that_are_read_are_kept():
    shapes = {"layers/cls/00": (6,)}
    head = build_head("linear", HeadSpec(shapes=shapes, num_classes=3), {}).eval()
    head.unread = nn.Linear(50, 50)

    graph = graph_of(*traced(program_of(head, shapes), SIZE))

    assert set(graph.tensors) == {
        "backbone.maps.0.weight", "backbone.maps.0.bias", "head.map.weight", "head.map.bias",
    }  # fmt: skip


def test_a_head_that_counts_its_rows_is_followed_one_image_at_a_time():
    class Pieces(nn.Module):
        def forward(self, arrays):
            values = arrays["layers/cls/00"]
            return torch.cat([part.cumsum(1) / len(part) * len(part) for part in values.split(2)])

    program, images = program_of(Pieces(), {"layers/cls/00": (6,)}), torch.randn(5, *SIZE)

    logits, batch = followed(program, images)

    assert batch == 1
    torch.testing.assert_close(logits, program(images), rtol=1e-5, atol=1e-5)


def test_a_head_that_cannot_be_traced_is_refused_with_the_reason():
    class Looks(nn.Module):
        def forward(self, arrays):
            values = arrays["layers/cls/00"]
            return values if float(values.sum()) > 0 else -values

    with pytest.raises(BackboneError, match=r"(?s)Looks cannot be traced.*featurecache predict"):
        traced(program_of(Looks(), {"layers/cls/00": (6,)}), SIZE)
