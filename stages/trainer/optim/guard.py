"""Guard against harmful optimizer steps: it skips a gradient norm that is not finite or far above its neighbors.

The rule is that of OLMo-core's SkipStepOptimizer: more than `sigma` standard deviations above the mean of the last 128
norms. A GPU works behind the host's back; a host that reads the norm to decide must wait until the GPU has caught up.
So the device decides: fused AdamW reads the verdict as `found_inf`, a flag made for fp16's overflows, and skips the
step by itself. Optimizers without that flag cost the host a wait at every step.
"""

import types
from collections.abc import Callable
from pathlib import Path

import torch

WINDOW = 128


class Guard:
    """Watch gradient norms; ``skipped`` counts the skipped steps (int64 scalar on the device).

    Args:
        sigma: standard deviations above the mean from which a step is skipped; 0: only norms that are not finite are.
    """

    def __init__(self, sigma: float, device: torch.device) -> None:
        self.sigma = sigma
        self.norms = torch.zeros(WINDOW, device=device)
        self.seen = torch.zeros((), dtype=torch.int64, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.harm = torch.zeros((), device=device)

    @torch.no_grad()
    def watch(self, norm: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Judge a step by its gradient's ``norm``, and let ``optimizer`` skip it if it would do harm."""
        norm = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).float()
        harm = ~norm.isfinite()
        if self.sigma:
            # One value repeated has deviation 0, and a rounding error would pass for a spike.
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


def _reads_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    return isinstance(optimizer, torch.optim.AdamW) and bool(optimizer.defaults["fused"])


def _ask_before_step(optimizer: torch.optim.Optimizer, guard: Guard) -> None:
    """Let ``optimizer.step`` ask the guard, which makes the host wait for the device."""
    step = optimizer.step
    optimizer.guard = guard

    def guarded(self: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> float | None:
        return None if guard.harm.item() else step(closure)

    optimizer.step = types.MethodType(guarded, optimizer)
