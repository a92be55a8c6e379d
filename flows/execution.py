"""The stages of one plan on the way to their outcomes. It does not wait for Prefect: where nobody else may decide what
runs, stages begin as soon as they can, from before Prefect's server answers, and their tasks take them over.
"""

import contextlib
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from queue import SimpleQueue

from flows import alerts, console, remote
from flows.graph import Stage
from flows.lifeline import Lifeline
from flows.stage import Outcome, run
from stages.contract import tracking


class Execution:
    """What the ``planned`` stages of the repository at ``root`` share while they run.

    ``key`` is what MLflow knows the pipeline by; ``source`` is whose alerts theirs are; ``restored`` are those whose
    outs were just brought; ``show`` is told each stage's name and lines as they come. ``outcomes`` fills as they end.
    """

    def __init__(
        self, root: Path, planned: list[Stage], restored: list[str], key: str, source: alerts.Source,
        lifeline: Lifeline, show: Callable[[str, str], None] = lambda name, line: None,
    ) -> None:  # fmt: skip
        self.root, self.planned, self.restored = root, planned, restored
        self.key, self.source, self.lifeline, self.show = key, source, lifeline, show
        self.taken = False  # by a flow, which closes the pipeline
        self.outcomes: dict[str, Outcome] = {}
        # One stage uses all of the machine's GPUs, so two must not run at once; CPU stages may.
        self._gpu = threading.Lock()
        self._recall = remote.Recall(root)
        self._claiming = threading.Lock()
        # None: asked for by outcome(), which from then on runs it.
        self._begun: dict[str, tuple[SimpleQueue[str | None], Future[Outcome]] | None] = {}

    def outcome(self, stage: Stage, emit: Callable[[str], None]) -> Outcome:
        """Run ``stage``, or wait for the end of what was begun, and pass its lines to ``emit``."""
        with self._claiming:
            begun, self._begun[stage.name] = self._begun.get(stage.name), None
        if begun is None:
            return self._execute(stage, emit)
        lines, future = begun
        for line in iter(lines.get, None):
            emit(line)
        return future.result()

    def begin(self, pool: ThreadPoolExecutor) -> None:
        """Begin every stage that has to run and whose upstream is done; again whenever a stage is done. The lines are
        shown as they come, and kept until :meth:`outcome` takes the stage over."""
        with self._claiming:
            done = {stage.name for stage in self.planned if stage.fresh}
            done |= {name for name, outcome in self.outcomes.items() if outcome.state in tracking.DONE}
            for stage in self.planned:
                if not stage.fresh and stage.name not in self._begun and done.issuperset(stage.upstream):
                    lines: SimpleQueue[str | None] = SimpleQueue()
                    self._begun[stage.name] = lines, pool.submit(self._begin, stage, lines, pool)

    def _begin(self, stage: Stage, lines: SimpleQueue, pool: ThreadPoolExecutor) -> Outcome:
        try:
            outcome = self._execute(stage, lines.put)
        finally:
            lines.put(None)
        if outcome.state in tracking.DONE and not self.lifeline.is_cut():
            self.begin(pool)
        return outcome

    def _execute(self, stage: Stage, emit: Callable[[str], None]) -> Outcome:
        if stage.fresh:
            outcome = Outcome("Cached", "inputs, parameters and outputs are unchanged")
        else:

            def tell(line: str) -> None:
                self.show(stage.name, line)
                emit(line)

            with contextlib.nullcontext() if stage.resource == "cpu" else self._gpu:
                outcome = self._reproduce(stage, tell)
            tell(console.end_line(outcome))
        with self._claiming:
            self.outcomes[stage.name] = outcome
        return outcome

    def _reproduce(self, stage: Stage, emit: Callable[[str], None]) -> Outcome:
        if not stage.force and not self.lifeline.is_cut():
            self._recall.look_for(stage.name, emit)
        if self.lifeline.is_cut():
            return Outcome("Cancelled", "interrupted before it started")
        with alerts.watching(self.source, stage.name, self.root, self.key) as hear:
            env = {"VERDICT_PIPELINE": self.key}
            return run(stage, self.root, lambda line: (emit(line), hear(line)), env, self.lifeline.end)


AHEAD: ContextVar[Execution | None] = ContextVar("AHEAD", default=None)
"""The one that was begun for the flow that is called next."""


@contextlib.contextmanager
def ahead(
    root: Path, planned: list[Stage], restored: list[str], show: Callable[[str, str], None]
) -> Iterator[Execution]:
    """Begin what can run, for the flow that is called in the block, whose run must have the name of the ``source``.

    Where the block heeds no signals, SIGTERM is a KeyboardInterrupt as SIGINT is. Stages that still run when it is left
    are stopped, and have saved their checkpoints afterwards.
    """
    from prefect.utilities.names import generate_slug

    name, lifeline, pool = generate_slug(2), Lifeline(), ThreadPoolExecutor(len(planned))
    key, source = f"{name}-{uuid.uuid4()}", alerts.Source("pipeline", name, "")
    execution = Execution(root, planned, restored, key, source, lifeline, show)
    before = AHEAD.set(execution)
    terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        execution.begin(pool)
        yield execution
    except KeyboardInterrupt:
        lifeline.interrupt()
        raise
    finally:
        lifeline.cut()
        with lifeline.heeding_signals():  # once more is no reason not to wait
            pool.shutdown()
        signal.signal(signal.SIGTERM, terminate)
        AHEAD.reset(before)
        lifeline.close()
        if not execution.taken:
            states = {stage: outcome.state for stage, outcome in execution.outcomes.items()}
            tracking.close_pipeline(key, {stage.name: "NotReady" for stage in planned} | states, root)
