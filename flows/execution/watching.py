"""Watch a running stage: read its metrics, and send an alert when it is silent or its trainer skips steps.

VERDICT_STALL_MINUTES  how long a stage may print nothing before it counts as stuck (60; 0: for ever)
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flows.alerts import AlertSource, send
from stages.contract.tracking import locations

POLL_SECONDS = 1.0
STALL_MINUTES = 60.0


class WatchedMetric:
    """The metric ``name`` of ``stage``, step by step; of pipeline ``pipeline`` only, if one is named."""

    def __init__(self, root: Path, stage: str, name: str, pipeline: str | None = None) -> None:
        self.folder, self.pattern = locations.spools(locations.home(root)), f"{stage}-*/metrics.jsonl"
        self.name, self.pipeline = name, pipeline
        self.began = time.time()
        self.offsets: dict[Path, int] = {}
        self.names: set[str] = set()  # of all metrics that were read

    def news(self) -> Iterator[tuple[int, float]]:
        """Yield the steps and values that were logged since the last call."""
        for path in self.folder.glob(self.pattern):
            # Shipped meanwhile, a torn line, or another version's.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                if path.stat().st_mtime >= self.began and self._ours(path):
                    yield from self._read(path)

    def _ours(self, path: Path) -> bool:
        if self.pipeline is None or path in self.offsets:
            return True
        return json.loads(path.with_name("run.json").read_text(encoding="utf-8"))["pipeline"] == self.pipeline

    def _read(self, path: Path) -> Iterator[tuple[int, float]]:
        with path.open(encoding="utf-8") as file:
            file.seek(self.offsets.get(path, 0))
            while (line := file.readline()).endswith("\n"):
                self.offsets[path] = file.tell()
                point = json.loads(line)
                self.names |= point["m"].keys()
                if self.name in point["m"]:
                    yield point["s"], point["m"][self.name]


@contextlib.contextmanager
def watching(
    source: AlertSource, stage: str, root: Path, pipeline: str, emit: Callable[[str], None]
) -> Iterator[Callable[[str], None]]:
    """Send an alert when ``stage`` prints nothing for VERDICT_STALL_MINUTES, or its trainer skips steps.

    Steps are skipped when their gradient spikes. Yields a function that passes a line of the stage to ``emit``.

    Args:
        pipeline: the key of the run in which the stage is executed.
    """
    last = time.monotonic(), "it has printed nothing yet"
    over = threading.Event()

    def hear(line: str) -> None:
        nonlocal last
        last = time.monotonic(), line
        emit(line)

    def watch() -> None:
        curve = WatchedMetric(root, stage, "skipped_steps", pipeline)
        step, skipped, alerted_skipped, alerted_silence = 0, 0.0, 0.0, None
        patience = _stall_minutes() * 60
        ended = False
        while not ended:
            ended = over.wait(POLL_SECONDS)
            heard, line = last
            if patience and not ended and time.monotonic() - heard > patience and alerted_silence != heard:
                alerted_silence = heard
                send(source, "stuck", f"no line for {patience / 60:g} minutes", stage, [line])
            for step, skipped in curve.news():  # noqa: B007
                pass  # the last one counts
            if skipped > alerted_skipped:
                alerted_skipped = 2 * skipped  # a run that diverges must not send an alert a second
                reason = f"{skipped:.0f} left out up to step {step}: the gradient was not finite, or far above the rest"
                send(source, "loss spike", reason, stage, [line])

    thread = threading.Thread(target=watch, name=f"watch-{stage}", daemon=True)
    thread.start()
    try:
        yield hear
    finally:
        over.set()
        thread.join()


def _stall_minutes() -> float:
    try:
        return float(os.environ.get("VERDICT_STALL_MINUTES", STALL_MINUTES))
    except ValueError:
        return STALL_MINUTES
