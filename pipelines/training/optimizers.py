"""Optimisers for a stack of M heads whose parameters are (M, ...) tensors, each head with its own rate and decay.

Slice m moves exactly as torch's AdamW, Adam or SGD would move head m alone. A group holds the heads' `rates`, which
`set_rates` sets before every step, and their `weight_decay`, (M,) each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from featurecache.sources import ParameterGroup

Rule = Literal["adamw", "adam", "sgd"]


def optimizer_of(
    rule: Rule, parameters: Iterable[Tensor], lr: Tensor, weight_decay: Tensor, momentum: float, nesterov: bool = False
) -> Optimizer:
    """Return torch's own optimiser for one head, and its stacked form for several; `lr` and `weight_decay` are (M,)."""
    if len(lr) > 1:
        settings: dict[str, Any] = {"rates": lr, "weight_decay": weight_decay}
        if rule == "sgd":
            return StackedSGD(parameters, settings, momentum, nesterov)
        return StackedAdam(parameters, settings, decoupled=rule == "adamw")
    rate, decay = float(lr), float(weight_decay)
    if rule != "sgd":
        return (AdamW if rule == "adamw" else Adam)(parameters, lr=rate, weight_decay=decay, fused=True)
    return SGD(parameters, lr=rate, weight_decay=decay, momentum=momentum, nesterov=nesterov, fused=True)


def grouped_optimizer(
    rule: Rule,
    groups: Sequence[ParameterGroup],
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool = False,
) -> Optimizer:
    """Return torch's own optimiser for groups of parameters, with the rate and decay of a head where they say nothing."""
    settings = [
        {
            "params": list(group.values.values()),
            "lr": lr * group.lr_factor,
            "weight_decay": weight_decay if group.weight_decay is None else group.weight_decay,
        }
        for group in groups
    ]
    if rule == "sgd":
        return SGD(settings, momentum=momentum, nesterov=nesterov)
    return AdamW(settings) if rule == "adamw" else Adam(settings)


def set_rates(optimizer: Optimizer, rates: Tensor) -> None:
    """Let the next steps be of these rates, (M,): one a head, or one a group of an optimiser of torch."""
    for number, group in enumerate(optimizer.param_groups):
        if "rates" in group:
            group["rates"] = rates
        else:
            group["lr"] = float(rates[number])


def has_gradient(optimizer: Optimizer) -> bool:
    """Return whether a step has anything to move."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def shorten_gradients(optimizers: Sequence[Optimizer], most: float) -> None:
    """Cut the gradient of all parameters together to a length of `most`; in a stack, that of every head by itself."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    values = [p for group in groups for p in group["params"] if p.grad is not None]
    if "rates" not in groups[0]:
        torch.nn.utils.clip_grad_norm_(values, most)
        return
    squares = torch.stack([p.grad.reshape(len(p), -1).square().sum(1) for p in values]).sum(0)
    shares = (most / (squares.sqrt() + 1e-6)).clamp(max=1)  # as torch does for one
    for p in values:
        p.grad.mul_(_per_head(shares, p))


def _per_head(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


class StackedAdam(Optimizer):
    """Adam with torch's betas (0.9, 0.999) and eps 1e-8; decay is decoupled (Loshchilov and Hutter, 2019) or in the gradient."""

    def __init__(self, parameters: Iterable[Tensor], settings: dict[str, Any], *, decoupled: bool) -> None:
        super().__init__(parameters, {**settings, "betas": (0.9, 0.999), "eps": 1e-8})
        self.decoupled = decoupled

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            (first, second), eps = group["betas"], group["eps"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                state["step"] += 1
                lr, decay = _per_head(group["rates"], p), _per_head(group["weight_decay"], p)
                gradient = p.grad if self.decoupled else p.grad + decay * p
                if self.decoupled:
                    p.mul_(1 - lr * decay)
                state["exp_avg"].lerp_(gradient, 1 - first)
                state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
                # in place: new memory for every intermediate value costs more than the arithmetic
                way = state["exp_avg_sq"].sqrt().div_((1 - second ** state["step"]) ** 0.5).add_(eps)
                torch.div(state["exp_avg"], way, out=way)
                p.addcmul_(way, lr / (first ** state["step"] - 1))


class StackedSGD(Optimizer):
    """Stochastic gradient descent with momentum, Nesterov's if asked for, decay added to the gradient, as torch's SGD."""

    def __init__(
        self, parameters: Iterable[Tensor], settings: dict[str, Any], momentum: float, nesterov: bool = False
    ) -> None:
        super().__init__(parameters, {**settings, "momentum": momentum, "nesterov": nesterov})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                gradient = p.grad + _per_head(group["weight_decay"], p) * p
                if group["momentum"]:
                    state = self.state[p]
                    if not state:
                        state["momentum_buffer"] = torch.zeros_like(p)
                    buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
                    gradient = gradient + group["momentum"] * buffer if group["nesterov"] else buffer
                p.sub_(_per_head(group["rates"], p) * gradient)
