"""The module between two blocks of ILA: a bottleneck with a small convolution over the patches; it keeps the grid or shrinks it.

    branch = up(gelu(norm(join(prefix_conv(p), conv(z))))),  (p, z) = split(gelu(norm(down(x)))),  out = skip(x) + dropout(branch)

Without padding the convolutions take kernel - 1 rows and columns from the grid, and `skip`, a depth-wise convolution of the
stream (residual spatial down-sampling), takes the same. Tokens before the patches pass the skip as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.peft._injection import Part

Skip = Literal["centre", "mean", "sum", "ones", "xavier", "dense", "average"]
"""What a shrinking module begins to pass on of each patch: itself; the mean or the sum of its neighbourhood (sum with noise, as
published, or exactly, ones); a random depth-wise or dense convolution; or the mean for good, without parameters."""

Norm = Literal["bn", "ln", "none"]
Start = Literal["zero", "random"]
Size = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a module is made."""

    rank: int = 8
    kernel: int = 3
    dilation: int = 1
    groups: int = 1
    """Maps of the depth-wise convolution for each channel; 0: one dense convolution instead, without norm and 1x1 map."""
    norms: tuple[Norm, Norm, Norm] = ("bn", "bn", "bn")
    """After `down`, after the depth-wise convolution, before `up`; the middle one brings its GELU."""
    prefix_conv: bool = True
    """Tokens before the patches have a 1x1 map of their own; else they pass through that of the patches, which is then padded."""
    dropout: float = 0.1
    drop_path: float = 0.0
    """Above 0: drop path takes the place of the dropout."""
    zero: bool = True
    """`up` begins at zero, so that the branch adds nothing."""


def form_of(*, norm: str, start: Start, **said: Any) -> Form:
    """Return the form that options stand for.

    Raises:
        ConfigError: `norm` is neither one of bn, ln and none, nor three of them.
    """
    words = [word.strip() for word in norm.split(",")]
    norms = words * 3 if len(words) == 1 else words
    known = get_args(Norm)
    check((
        len(norms) == 3 and set(norms) <= set(known),
        f"norm must be one of {', '.join(known)}, or three of them as bn,ln,none, got {norm!r}",
    ))  # fmt: skip
    return Form(norms=(norms[0], norms[1], norms[2]), zero=start == "zero", **said)  # type: ignore[arg-type]


class Spatial(nn.Module):
    """(B, r, H, W) -> (B, r, H', W'): depth-wise convolution, norm with GELU, 1x1 map."""

    def __init__(self, form: Form, padding: int) -> None:
        super().__init__()
        self.padding, dense = padding, form.groups == 0
        inner = form.rank if dense else form.rank * form.groups
        self.conv = nn.Conv2d(
            form.rank, inner, form.kernel, padding=padding, dilation=form.dilation, groups=1 if dense else form.rank
        )
        self.norm = None if dense else norm_of(form.norms[1], inner)
        self.point = None if dense else nn.Conv2d(inner, form.rank, 1)
        for conv in filter(None, (self.conv, self.point)):
            nn.init.xavier_uniform_(conv.weight)
        if (
            form.zero and self.conv.bias is not None
        ):  # a batch norm takes it away again: any other value would stay for ever
            nn.init.zeros_(self.conv.bias)

    def forward(self, grid: Tensor) -> Tensor:
        """Mix neighbours."""
        grid = self.conv(grid)
        if self.norm is not None:
            grid = F.gelu(normed(self.norm, grid.movedim(1, -1))).movedim(-1, 1)
        out: Tensor = grid if self.point is None else self.point(grid)
        return out


class InterLayerAdapter(Part):
    """(B, P + H*W, D) -> (B, P + H'*W', D), P tokens standing before the patches; H' = H where `shrinks` is false.

    With `residual` false nothing is added to the branch (as the published code does where it neither pads nor skips).
    """

    def __init__(
        self, width: int, form: Form, *, prefix: int = 1, shrinks: bool = False, skip: Skip | None = None,
        residual: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.prefix, self.residual = prefix, residual
        shared = prefix > 0 and not form.prefix_conv
        reach = form.dilation * (form.kernel - 1)
        padding = reach // 2 if shared or not shrinks else 0
        self.shrink = reach - 2 * padding
        """Rows and columns that the grid loses."""
        self.down, self.up = nn.Linear(width, form.rank), nn.Linear(form.rank, width)
        self.norm1, self.norm3 = norm_of(form.norms[0], form.rank), norm_of(form.norms[2], form.rank)
        self.prefix_conv = nn.Conv2d(form.rank, form.rank, 1) if prefix and form.prefix_conv else None
        self.spatial = Spatial(form, padding)
        self.skip = None if skip is None else _skip(skip, width, form, padding)
        self.drop = DropPath(form.drop_path) if form.drop_path else nn.Dropout(form.dropout)
        begin_linear(self.down, self.up, zero=form.zero)
        if self.prefix_conv is not None:
            nn.init.xavier_uniform_(self.prefix_conv.weight)

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """Return the stream after the module; `size` is (H, W)."""
        added: Tensor = self.strength * self.drop(self.branch(tokens, size))
        if not self.residual:
            return added
        return added + (tokens if self.skip is None else self._passed(tokens, size))

    def after(self, size: Size) -> Size:
        """Return (H', W') of (H, W)."""
        return size[0] - self.shrink, size[1] - self.shrink

    def branch(self, tokens: Tensor, size: Size) -> Tensor:
        """Return what is added to the stream."""
        found = F.gelu(normed(self.norm1, self.down(tokens)))
        prefix, patches = found[:, : self.prefix], found[:, self.prefix :]
        prefix = self._prefixed(prefix) if self.prefix else prefix
        joined = torch.cat([prefix, rows_of(self.spatial(grid_of(patches, size)))], 1)
        out: Tensor = self.up(F.gelu(normed(self.norm3, joined)))
        return out

    def _prefixed(self, prefix: Tensor) -> Tensor:
        """(B, P, r) -> (B, P, r), each token for itself."""
        single = prefix.flatten(0, 1)[:, :, None, None]
        out: Tensor = (self.prefix_conv or self.spatial)(single)
        return out.reshape(prefix.shape)

    def _passed(self, tokens: Tensor, size: Size) -> Tensor:
        assert self.skip is not None
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        return torch.cat([prefix, rows_of(self.skip(grid_of(patches, size)))], 1)


def begin_linear(down: nn.Linear, up: nn.Linear, *, zero: bool) -> None:
    """Begin as published; or with what comes `up` at zero, so that the start is that of the backbone."""
    for linear in (down, up):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.normal_(linear.bias, std=1e-6)
    if zero:
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)


def _skip(kind: Skip, width: int, form: Form, padding: int) -> nn.Module:
    """Return the residual spatial down-sampling."""
    kernel, area = form.kernel, form.kernel**2
    if kind == "average":
        return nn.AvgPool2d(kernel, 1, padding)
    conv = nn.Conv2d(
        width,
        width,
        kernel,
        padding=padding,
        dilation=form.dilation,
        groups=1 if kind == "dense" else width,
        bias=False,
    )
    with torch.no_grad():
        if kind == "centre":
            conv.weight.zero_()[:, :, (kernel - 1) // 2, (kernel - 1) // 2] = 1
        elif kind in ("mean", "ones"):
            conv.weight.fill_(1 / area if kind == "mean" else 1)
        elif kind == "sum":
            conv.weight.normal_(1.0, 0.001)
        else:
            nn.init.xavier_uniform_(conv.weight)
    return conv


def norm_of(kind: Norm, width: int) -> nn.Module | None:
    """Return a norm over channels."""
    return {"bn": nn.BatchNorm1d, "ln": nn.LayerNorm}[kind](width) if kind != "none" else None


def normed(norm: nn.Module | None, values: Tensor) -> Tensor:
    """(..., C) -> (..., C); batch norm takes every position of every image for a sample."""
    if norm is None:
        return values
    if isinstance(norm, nn.BatchNorm1d):
        return norm(values.flatten(0, -2)).reshape(values.shape)  # type: ignore[no-any-return]
    return norm(values)  # type: ignore[no-any-return]


def grid_of(rows: Tensor, size: Size) -> Tensor:
    """(B, H*W, C) -> (B, C, H, W)."""
    return rows.transpose(1, 2).reshape(rows.shape[0], rows.shape[-1], *size)


def rows_of(grid: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C)."""
    return grid.flatten(2).transpose(1, 2)
