"""Backbone and head of a run as one graph: plain Python text over torch's own operators, and the tensors that it reads.

Neither needs this package, timm or open_clip: whatever head and backbone were traced, what is left are operators of torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind

from featurecache.backbones import Backbone
from featurecache.casting import TORCH_DTYPES
from featurecache.errors import BackboneError
from featurecache.features import ArraySpec
from featurecache.requests import request_of

CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range")
"""Beginnings of the names of operators that only compare the run with the tracing, its device too."""
PLACES = ("device(type='cpu')", "device(type='cuda', index=0)")

HEADER = '''"""The graph of this model, (B, 3, H, W) images to (B, C) logits, as {library} traced it; {batch}.

`forward` takes the tensors of model.safetensors called TENSORS, in this order, then the images.
"""

import torch
from torch import inf, nan

TENSORS = {names}


'''


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A traced program."""

    source: str
    """Text of a Python module with TENSORS and `forward`."""
    tensors: Mapping[str, Tensor]
    """By name; those of the backbone under `backbone.`, in the names of its library, those of the head under `head.`."""


class Program(nn.Module):
    """Images to logits, as a `Predictor` goes: the backbone, the store's dtype, the head."""

    def __init__(self, backbone: Backbone, head: nn.Module, arrays: list[ArraySpec], tokens: list[str]) -> None:
        super().__init__()
        self.backbone, self.head = backbone.module, head
        # a function even where it is a module: its tensors are those of the backbone, and have one name
        self._take = lambda images: backbone.forward(images, request_of(tokens, arrays))
        self._arrays = arrays

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C) logits, float32."""
        found = self._take(images)
        arrays = {s.name: found[s.name].to(TORCH_DTYPES[s.dtype]).float() for s in self._arrays}
        logits: Tensor = self.head(arrays)
        return logits.float()


def traced(program: Program, input_size: tuple[int, int, int]) -> tuple[ExportedProgram, int | None]:
    """Return the program as a graph, and for how many images: None, any number; 1, where its code fixes their number.

    Raises:
        BackboneError: its code cannot be followed; says why.
    """
    try:
        return _traced(program, input_size, None), None
    except Exception as error:  # tracing raises whatever the traced code raises, and errors of its own
        try:
            return _traced(program, input_size, 1), 1
        except Exception:  # the first reason is the better one
            raise BackboneError(
                f"{type(program.backbone).__name__} with the head {type(program.head).__name__} cannot be traced to a graph "
                f"({_reason(error)}). `featurecache predict` runs it."
            ) from error


def _traced(program: Program, input_size: tuple[int, int, int], batch: int | None) -> ExportedProgram:
    images = torch.zeros(batch or 2, *input_size, device=next(program.backbone.parameters()).device)
    free = {"images": {0: Dim("batch")}} if batch is None else None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = export(program, (images,), dynamic_shapes=free, strict=False)
        return found if _is_plain(found) else found.run_decompositions({})


def _is_plain(program: ExportedProgram) -> bool:
    """Return whether it holds only operators that make new tensors.

    Where it does not, running the decompositions takes regions of another precision apart into casts, and what writes into
    a tensor into what makes one; that takes twice as long as the tracing.
    """
    nodes = [node for node in program.graph.nodes if node.op not in ("placeholder", "output")]
    schemas = [getattr(node.target, "_schema", None) for node in nodes]
    is_pure = not any(schema is not None and schema.is_mutable for schema in schemas)
    return is_pure and all(node.op == "call_function" for node in nodes)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def graph_of(program: ExportedProgram, batch: int | None = None) -> Graph:
    """Return the graph as text, with the tensors that it reads and no others.

    Raises:
        BackboneError: it holds more than operators on tensors.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and str(getattr(node.target, "_opname", "")).startswith(CHECKS):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    strange = [node for node in graph.nodes if node.op in ("get_attr", "call_module", "call_method")]
    if strange:
        raise BackboneError(f"the traced graph holds {strange[0].format_node()}, which is no operator of torch.")
    held = {**program.state_dict, **program.constants}
    names: list[str] = []
    for node, spec in zip(
        [node for node in graph.nodes if node.op == "placeholder"], program.graph_signature.input_specs, strict=True
    ):
        if spec.kind != InputKind.USER_INPUT and not node.users:
            graph.erase_node(node)
        elif spec.kind != InputKind.USER_INPUT:
            names.append(str(spec.target))
    program.graph_module.recompile()
    source = _portable(graph.python_code("self").src)
    listed = "(\n" + "".join(f"    {name!r},\n" for name in names) + ")"
    return Graph(
        HEADER.format(
            library=f"torch {torch.__version__}", batch="B is free" if batch is None else f"B is {batch}", names=listed
        )
        + source,
        {name: held[name].detach().cpu().contiguous().clone() for name in names},
    )


def _portable(source: str) -> str:
    """Return the text with the devices of the tracing replaced by that of the images."""
    head, colon, body = source.lstrip().partition("):\n")
    for place in PLACES:
        body = body.replace(place, "here")
    lines = [line for line in body.splitlines() if line.strip()]
    return f"{head.replace('forward(self, ', 'forward(')}{colon}    here = images.device\n" + "\n".join(lines) + "\n"
