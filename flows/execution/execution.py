"""Execute the stages of one plan, for their Prefect tasks: one GPU stage at a time, cached results first."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from flows import alerts, console
from flows.execution import remote
from flows.execution.lifeline import Lifeline
from flows.execution.stage_process import run
from flows.execution.watching import watching
from flows.planned import Outcome, Stage
from stages.contract.tracking import pipelines


class Execution:
    """Run the ``planned`` stages of the repository at ``root`` and collect their ``outcomes``.

    Args:
        key: MLflow's name of the pipeline's run.
        source: the flow run that alerts name.
    """

    def __init__(
        self, root: Path, planned: list[Stage], key: str, source: alerts.AlertSource, lifeline: Lifeline
    ) -> None:  # fmt: skip
        self.root, self.planned, self.key, self.source, self.lifeline = root, planned, key, source, lifeline
        self.outcomes: dict[str, Outcome] = {}
        # One stage uses all of the machine's GPUs, so two must not run at once; CPU stages may.
        self._gpu = threading.Lock()
        self._recall = remote.Recall(root)
        if not all(stage.fresh for stage in planned):
            pipelines.begin_pipeline(key, root)

    def outcome(self, stage: Stage, emit: Callable[[str], None]) -> Outcome:
        """Run ``stage`` unless it is fresh, pass its lines to ``emit``, and return how it ended."""
        if stage.fresh:
            outcome = Outcome("Cached", "inputs, parameters and outputs are unchanged")
        else:
            with contextlib.nullcontext() if stage.resource == "cpu" else self._gpu:
                outcome = self._reproduce(stage, emit)
            emit(console.end_line(outcome))
        self.outcomes[stage.name] = outcome
        return outcome

    def _reproduce(self, stage: Stage, emit: Callable[[str], None]) -> Outcome:
        if not stage.force and not self.lifeline.is_cut():
            self._recall.look_for(stage.name, emit)
        if self.lifeline.is_cut():
            return Outcome("Cancelled", "interrupted before it started")
        pipelines.begin_pipeline(self.key, self.root)
        with watching(self.source, stage.name, self.root, self.key, emit) as watched:
            return run(stage, self.root, watched, {"VERDICT_PIPELINE": self.key}, self.lifeline.end)
