"""Offload to the host: fp32 weights and optimizer states in its memory, bf16 weights and fp32 gradients on the device.

It is the same training, bit for bit: autocast rounds fp32 weights to bf16 at every step anyway, and of the decoder's
matrices only these rounded copies are on the device. DeepSpeed's ZeRO-2 holds 18 bytes per parameter on the host
(weights, gradients, two states, and a bf16 buffer of the weights), this 12: in a host of 125 GiB a 7B model's step by
DeepSpeed was killed for want of memory.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def keep_on_host(model: "PreTrainedModel", rounded: bool) -> None:
    """Give every parameter of ``model`` a ``host`` copy in fp32, in place.

    Args:
        rounded: the decoder's matrices are multiplied in bf16, and become bf16 on the device.
    """
    matrices = {id(p) for p in model.model.layers.parameters() if p.ndim >= 2} if rounded else ()
    for p in model.parameters():
        p.host = torch.empty(p.shape, dtype=torch.float32).copy_(p.data)
        if id(p) in matrices:
            p.data = p.data.bfloat16()
            p.grad_dtype = torch.float32  # sums of many micro-batches' gradients in bf16 would lose the small ones


def take_back(model: "PreTrainedModel") -> None:
    """Undo :func:`keep_on_host`, if it was done: make the parameters fp32 again, on the host."""
    for p in model.parameters():
        if hasattr(p, "host"):
            p.grad = None
            p.data = p.host
            del p.host


class HostOptimizer(torch.optim.Optimizer):
    """Optimizer on the processor: it steps one parameter at a time, while the gradient of the next crosses the bus.

    Args:
        groups: parameter groups of a model that :func:`keep_on_host` has divided.
        make: one group of host tensors -> the torch optimizer that updates them.
    """

    def __init__(
        self, groups: list[dict[str, Any]], learning_rate: float,
        make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    ) -> None:  # fmt: skip
        super().__init__(groups, {"lr": learning_rate, "weight_decay": 0.0})
        self.hosts = [make([group | {"params": [p.host]}]) for p, group in self._each()]

    def _each(self) -> list[tuple[torch.nn.Parameter, dict[str, Any]]]:
        """Return every parameter with its group, in the order of ``hosts``."""
        return [(p, group) for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        each = zip(self._each(), self.hosts, strict=True)
        work = [(p, group["lr"], host) for (p, group), host in each if p.grad is not None]
        arriving = _fetch(work[0][0].grad) if work else None
        for i, (p, lr, host) in enumerate(work):
            assert arriving is not None
            gradient = _arrived(arriving)
            arriving = _fetch(work[i + 1][0].grad) if i + 1 < len(work) else None
            host.param_groups[0]["lr"] = lr
            p.host.grad = gradient
            host.step()
            p.host.grad = None
            p.copy_(p.host.to(p.dtype))  # rounded here: half the bytes on the bus

    def state_dict(self) -> dict[str, Any]:
        """Return weights and states as they are on the host; before the first step there are none."""
        state = {
            i: {"host": p.host} | host.state[p.host]
            for i, ((p, _), host) in enumerate(zip(self._each(), self.hosts, strict=True))
            if p.host in host.state
        }
        return super().state_dict() | {"state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"state": {}})
        each = self._each()
        for i, state in state_dict["state"].items():
            host = each[i][0].host
            host.copy_(state["host"])
            self.hosts[i].state[host] = {name: value for name, value in state.items() if name != "host"}


def _fetch(gradient: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Start copying ``gradient`` to the host; return the copy and the event of its arrival."""
    if not gradient.is_cuda:
        return gradient, None
    copy = torch.empty(gradient.shape, dtype=torch.float32, pin_memory=True).copy_(gradient, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copy, event


def _arrived(arriving: tuple[torch.Tensor, torch.cuda.Event | None]) -> torch.Tensor:
    copy, event = arriving
    if event is not None:
        event.synchronize()
    return copy
