"""Sizes of the measurements for the hardware at hand: seconds each, on two cores as on a GPU."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.contract.files import atomic_write
from stages.scaling.shapes import Shape
from stages.trainer.plan import recipe
from stages.trainer.plan.hardware import Hardware, detect_hardware
from stages.trainer.plan.recipe import Recipe
from verdict.claims import overridden
from verdict.measuring.rates import TRAININGS

VOCAB = 32000
SIZES = {  # hidden, intermediate, layers, heads of 128
    "110m": (768, 2048, 12, 6), "374m": (1024, 2816, 24, 8), "1.26b": (2048, 5632, 22, 16),
    "7b": (4096, 11008, 32, 32), "8b": (4096, 14336, 32, 32), "toy": (128, 256, 2, 1), "wide": (2048, 5632, 8, 16),
}  # fmt: skip
# What every measurement has in common, so that a row changes its own switch alone.
COMMON = {
    "trainer.optimizer": "adamw", "trainer.schedule": "cosine", "trainer.checkpointing": "none",
    "trainer.offload": "none", "trainer.sharding": "auto", "trainer.local_steps": 1,
}  # fmt: skip


def size_shape(size: str, row_tokens: int) -> Shape:
    """Return one of SIZES for rows of ``row_tokens``."""
    hidden, intermediate, layers, heads = SIZES[size]
    return Shape(VOCAB, hidden, intermediate, layers, heads, 128, row_tokens)


@dataclass(frozen=True)
class Workload:
    """A model and the rows of a step."""

    shape: Shape
    batch_rows: int
    row_tokens: int

    @property
    def tokens(self) -> int:
        return self.batch_rows * self.row_tokens


@dataclass(frozen=True)
class Setting:
    """Sizes of all measurements on one machine.

    Args:
        narrow, wide: steps on random tokens; wide is for number formats.
        quality: trainings on packed rows of ``rows``, of ``steps`` steps, with ``seeds`` seeds.
        rate: AdamW's peak rate, at which the search of each optimizer's rate begins.
        searched: trainings of a search at most.
        seconds: of timed steps in a pair.
        memo: folder of what several rows share: pairs and trainings.
    """

    hardware: Hardware
    narrow: Workload
    wide: Workload
    quality: Workload
    steps: int
    seeds: int
    rate: float
    searched: int
    seconds: float
    rows: Path
    memo: Path

    def workload(self, size: str) -> Workload:
        """Return the steps of a claim's ``shape``."""
        return self.wide if size == "wide" else self.narrow

    def recipe(self, work: Workload, overrides: dict[str, Any]) -> Recipe:
        """Return the trainer's own recipe for one device, rows of one document, and no accumulation."""
        params = overridden(COMMON | overrides).trainer
        return recipe.resolve(self.hardware, work.shape, work.batch_rows, work.row_tokens, params, True)

    def remember(self, compute: Callable[[], Any], *identity: Any) -> Any:
        """Return ``compute()``, plain values, from the memo if it was computed here before for this ``identity``."""
        import torch

        whole = [asdict(part) if isinstance(part, Workload) else part for part in identity]
        text = json.dumps([whole, self.hardware.name, self.seconds, torch.__version__], sort_keys=True)
        path = self.memo / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if not path.exists():
            value = compute()
            self.memo.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as part:
                part.write_text(json.dumps(value), encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))


def detect_setting(rows: Path, memo: Path, tiny: bool = False) -> Setting:
    """Return the sizes for this machine's first device; ``tiny``: for tests, of no meaning."""
    os.environ["VERDICT_GPUS"] = "1"
    hardware = detect_hardware()
    if tiny:
        small = Workload(Shape(512, 32, 64, 2, 2, 16, 64), 4, 64)
        return Setting(hardware, small, small, small, 4, 2, 3e-3, 3, 0.2, rows, memo)
    if hardware.device == "cpu":
        small = Workload(Shape(4096, 128, 352, 4, 2, 64, 512), 4, 512)
        quality = Workload(small.shape, 2, 512)
        return Setting(hardware, small, small, quality, 300, 3, 3e-3, TRAININGS, 12.0, rows, memo)
    narrow, wide = (Workload(size_shape(size, 2048), 8, 2048) for size in ("110m", "wide"))
    quality = Workload(Shape(4096, 512, 1408, 8, 4, 128, 512), 8, 512)
    return Setting(hardware, narrow, wide, quality, 800, 5, 1.5e-3, TRAININGS, 4.0, rows, memo)
