"""Speed and peak memory of a training step, in pairs A B A B in one process on random tokens."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

from stages.contract.errors import UserError
from stages.trainer.loop.preflight import SyntheticTraining
from verdict.claims import Claim
from verdict.measuring.intervals import Measured, exact, median_interval
from verdict.measuring.peak import peak_of
from verdict.measuring.setting import Setting, Workload

ROUNDS = (4, 15)  # of a pair: least and most
WARM, WARM_ROUNDS = 0.2, 10  # two steps in a row that differ by less are warm; rounds of warming at most


def step_pair(claim: Claim, setting: Setting) -> Measured:
    """Measure a step with ``claim.switch`` against one with ``claim.against``, in its metric."""
    work = setting.workload(claim.shape)
    sides = claim.against, claim.switch
    seconds, details = setting.remember(lambda: _pair(setting, work, sides), "pair", work, sides)
    one, other = details["peak_bytes"]
    if claim.metric == "memory":
        if not one or not other:
            raise UserError("a compiled step's memory cannot be counted on a CPU.")
        return exact(other / one - 1, **details)
    return median_interval([a / b for a, b in zip(*seconds, strict=True)], **details)


def _pair(
    setting: Setting, work: Workload, sides: Sequence[dict[str, Any]]
) -> tuple[list[list[float]], dict[str, Any]]:  # fmt: skip
    """Return the seconds of a step of both sides in turn, and what the report shows."""
    trainings, peaks = zip(*(prepared(setting, work, overrides) for overrides in sides), strict=True)
    seconds = alternate(trainings, setting.seconds)
    return seconds, {
        "peak_bytes": peaks, "recipes": [described(training) for training in trainings],
        "parameters": work.shape.parameters, "batch": [work.batch_rows, work.row_tokens],
        "tokens_per_second": [work.tokens / statistics.median(side) for side in seconds],
    }  # fmt: skip


def micro_batches(claim: Claim, setting: Setting) -> Measured:
    """Measure the peak of a step in four micro-batches against the same step in one."""
    work = setting.narrow
    parts = 4 if work.batch_rows % 4 == 0 else 1
    small = Workload(work.shape, work.batch_rows // parts, work.row_tokens)
    _, whole = prepared(setting, work, {})
    _, cut = prepared(setting, small, {}, parts)
    return exact(cut / whole - 1, peak_bytes=[whole, cut], parts=parts)


def prepared(
    setting: Setting, work: Workload, overrides: dict[str, Any], parts: int = 1
) -> tuple[SyntheticTraining, int]:  # fmt: skip
    """Build a training, take its first steps, and return it with the peak of the third.

    What other trainings hold meanwhile does not count: they rest, and a GPU's allocator counts bytes exactly.
    """
    import torch

    torch._dynamo.config.recompile_limit = 64
    others = torch.cuda.memory_allocated() if setting.hardware.device == "cuda" else 0
    training = SyntheticTraining(
        work.shape,
        setting.recipe(work, overrides),
        work.row_tokens,
        work.batch_rows,
        overrides.get("pretrain.clip", 1.0),
    )
    for _ in range(2):
        training.step(parts)
    return training, peak_of(training, parts, others)


def alternate(trainings: Sequence[SyntheticTraining], seconds: float) -> list[list[float]]:
    """Return the seconds of a step of each training, one after another in rounds, for ``seconds`` together.

    Before, all are warmed in turn: a step that compiles, or fills a cache, is no sample.
    """
    _warm(trainings)
    began = time.perf_counter()
    taken: list[list[float]] = [[] for _ in trainings]
    least, most = ROUNDS
    while len(taken[0]) < least or (len(taken[0]) < most and time.perf_counter() - began < seconds):
        for side, training in zip(taken, trainings, strict=True):
            side.append(statistics.median(sum(training.step()) for _ in range(2)))
    return taken


def _warm(trainings: Sequence[SyntheticTraining]) -> int:
    """Take steps in turn until two rounds in a row agree for each training; return the rounds."""
    before = [0.0] * len(trainings)
    for taken in range(1, WARM_ROUNDS + 1):
        now = [sum(training.step()) for training in trainings]
        if all(abs(b - a) <= WARM * min(a, b) for a, b in zip(before, now, strict=True)):
            return taken
        before = now
    return WARM_ROUNDS


def described(training: SyntheticTraining) -> str:
    """Return a training's choices in one line."""
    chosen = training.recipe
    return (
        f"{chosen.precision}, {chosen.attention}, compile {chosen.compile}, checkpointing {chosen.checkpointing}, "
        f"{chosen.params.optimizer}, offload {chosen.offload}"
    )
