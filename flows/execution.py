"""The stages of one plan on the way to their outcomes. It needs no Prefect: where nobody else may decide what runs,
stages begin as soon as they can, from before Prefect's server answers, and their tasks take them over.
"""

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
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
        self, root: Path, planned: list[Stage], restored: list[str], key: str, source: alerts.Source, line: Lifeline,
        show: Callable[[str, str], None] = lambda name, line: None,
    ) -> None:  # fmt: skip
        self.root, self.planned, self.restored = root, planned, restored
        self.key, self.source, self.line, self.show = key, source, line, show
        self.outcomes: dict[str, Outcome] = {}
        # One stage uses all of the machine's GPUs, so two must not run at once; CPU stages may.
        self._gpu = threading.Lock()
        self._recall = remote.Recall(root)
        self._claiming = threading.Lock()
        # None: it is its task that runs it.
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
        """Begin what has to run and waits for nothing that has, and so on whenever one ends well. A stage's lines are
        kept until :meth:`outcome` takes it over."""
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
        if outcome.state in tracking.DONE and not self.line.is_cut():
            self.begin(pool)
        return outcome

    def _execute(self, stage: Stage, emit: Callable[[str], None]) -> Outcome:
        if stage.fresh:
            outcome = Outcome("Cached", "inputs, parameters and outputs are unchanged")
        else:

            def tell(line: str) -> None:
                self.show(stage.name, line)
                emit(line)

            with nullcontext() if stage.resource == "cpu" else self._gpu:
                outcome = self._reproduce(stage, tell)
            tell(console.end_line(outcome))
        with self._claiming:
            self.outcomes[stage.name] = outcome
        return outcome

    def _reproduce(self, stage: Stage, emit: Callable[[str], None]) -> Outcome:
        if self.line.interrupted.is_set():
            return Outcome("Cancelled", "interrupted before it started")
        if not stage.force:
            self._recall.look_for(stage.name, emit)
        with alerts.watching(self.source, stage.name, self.root, self.key) as hear:
            env = {"VERDICT_PIPELINE": self.key}
            return run(stage, self.root, lambda line: (emit(line), hear(line)), env, self.line.end)


AHEAD: ContextVar[Execution | None] = ContextVar("AHEAD", default=None)
"""The one that was begun for the flow that is called next."""


@contextmanager
def ahead(root: Path, planned: list[Stage], restored: list[str], show: Callable[[str, str], None]) -> Iterator[str]:
    """Begin what can run, for the flow that is called in the block. The value is the name its run must have.

    Stages that still run when the block is left are stopped, and have saved their checkpoints afterwards.
    """
    from prefect.utilities.names import generate_slug

    name, line, pool = generate_slug(2), Lifeline(), ThreadPoolExecutor(len(planned))
    key, source = f"{name}-{uuid.uuid4()}", alerts.Source("pipeline", name, "")
    execution = Execution(root, planned, restored, key, source, line, show)
    before = AHEAD.set(execution)
    try:
        execution.begin(pool)
        yield name
    except KeyboardInterrupt:
        console.say_interrupted()
        raise
    finally:
        AHEAD.reset(before)
        line.cut()
        pool.shutdown()
        line.close()
