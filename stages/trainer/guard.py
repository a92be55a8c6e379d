"""Optimizer steps that would do harm are left out: a gradient norm that is not finite, or far above its neighbours.

The rule is OLMo-core's SkipStepOptimizer's: more than `sigma` standard deviations above the mean of the last 128
norms. It is decided on the device, so the host never waits for it: fused AdamW reads the verdict as `found_inf`.
Optimizers without that flag, and sharded ones, cost a look from the host at every step.
"""

import types
from pathlib import Path

import torch

WINDOW = 128


class Guard:
    """Watches gradient norms; ``skipped`` counts the steps left out (int64 scalar on the device).

    Args:
        sigma: how many standard deviations above the mean are too far; 0: only norms that are not finite.
    """

    def __init__(self, sigma: float, device: torch.device):
        self.sigma = sigma
        self.norms = torch.zeros(WINDOW, device=device)
        self.seen = torch.zeros((), dtype=torch.int64, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.harm = torch.zeros((), device=device)

    @torch.no_grad()
    def watch(self, norm: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Judge the step whose gradient has norm ``norm``; ``optimizer`` leaves it out if it would do harm."""
        norm = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).float()
        harm = ~norm.isfinite()
        if self.sigma:
            # Of one value repeated, the deviation is 0 and rounding would be a spike.
            limit = self.norms.mean() + self.sigma * self.norms.std().clamp(min=0.01 * self.norms.mean())
            harm |= (self.seen >= WINDOW) & (norm > limit)
        slot = torch.arange(WINDOW, device=self.norms.device) == self.seen % WINDOW
        self.norms = torch.where(slot & ~harm, norm, self.norms)
        self.seen += ~harm
        self.skipped += harm
        self.harm = harm.float()
        if _reads_found_inf(optimizer):
            optimizer.found_inf = self.harm
        elif not hasattr(optimizer, "guard"):
            _ask_before_step(optimizer, self)

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        save_file({name: getattr(self, name) for name in ("norms", "seen", "skipped")}, path)

    def load(self, path: Path) -> None:
        from safetensors.torch import load_file

        for name, value in load_file(path, device=str(self.norms.device)).items():
            setattr(self, name, value)


def _reads_found_inf(optimizer) -> bool:
    parameter = optimizer.param_groups[0]["params"][0]
    return isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"] and type(parameter.data) is (
        torch.Tensor
    )  # fmt: skip


def _ask_before_step(optimizer, guard: Guard) -> None:
    step = optimizer.step
    optimizer.guard = guard

    def guarded(self, closure=None):
        return None if guard.harm.item() else step(closure)

    optimizer.step = types.MethodType(guarded, optimizer)
