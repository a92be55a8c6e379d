"""Print to the terminal: the plan, the stages' own lines, the closing table. Not for logs or alerts."""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from flows.planned import Outcome, Stage
from stages.contract.progress import clock
from stages.contract.secrets import redact
from stages.contract.tracking import pipelines
from stages.evaluation.reporting.page import PAGE

EVALUATION = "eval"  # the stage that writes the closing table
RESUME = "Resume with `make run`, or try only this with"
CHATTER = re.compile(
    r"Running stage '|(Generating|Updating) lock file|To (track the changes with git|enable auto staging), run:"
    r"|\s*(git add |dvc config core\.autostage)|Use `dvc push`|Data and pipelines are up to date"
    r"|WARNING: Process '.*' with \(Pid \d+\), in RWLock-file .* had been killed"
    r"|ERROR: failed to reproduce '[^']*': failed to run:|Stage '[^']*' (didn't change|is cached)"
)


def plan_table(stages: list[Stage], seconds: dict[str, float], restored: Sequence[str] = ()) -> str:
    """Return a line for each stage: its state, time and reasons to run.

    The state is run, cached or just ``restored``; the time is the ``seconds`` of its last run, blank if unknown.
    """
    running = [stage for stage in stages if not stage.fresh]
    times = {stage.name: clock(seconds[stage.name]) for stage in running if stage.name in seconds}
    width = max((len(stage.name) for stage in stages), default=0)
    column = max(map(len, times.values()), default=-2) + 2
    fetched = [stage.name for stage in stages if stage.fresh and stage.name in restored]
    lines = [f"Plan: {len(running)} of {len(stages)} stages to run, {len(stages) - len(running) - len(fetched)} cached"]
    lines[0] += f", {len(fetched)} restored" if fetched else ""
    if times:
        unknown = len(running) - len(times)
        lines[0] += f"; about {clock(sum(seconds[name] for name in times))} by the last times"
        lines[0] += f", and {unknown} of unknown time" if unknown else ""
    for stage in stages:
        what = f"run     {times.get(stage.name, ''):<{column}}{_shorten(stage.reasons)}" if stage.reasons else "cached"
        what = "restored" if stage.name in fetched else what
        lines.append(f"  {stage.name:<{width}}  {what}")
    return "\n".join(lines)


def _shorten(reasons: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(reasons[:most]) + (f" and {len(reasons) - most} more" if len(reasons) > most else "")


def say(text: str) -> None:
    """Print ``text`` at once, in one piece. A failure to print stops no stage."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        stop_printing()
    except (OSError, ValueError):  # a closed terminal, a full disk, a character outside of its encoding
        pass


def stage_line(width: int, stage: str, line: str) -> None:
    """Print a stage's line, unless it is DVC's chatter."""
    if not is_chatter(line):
        say(f"{stage:<{width}} | {line}")


def is_chatter(line: str) -> bool:
    """Whether a line is DVC's advice to a person who runs `dvc`."""
    return bool(CHATTER.match(line))


def stop_printing() -> None:
    """Send the rest of stdout nowhere: its reader, `head` for example, has closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def stage_lines(width: int) -> Iterator[None]:
    """Print the stages' lines during the block, and keep Prefect's own log off the terminal.

    A log record with the attribute ``stage`` is a stage's line; all records still reach Prefect's API.
    """

    class Printed(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "stage"):
                stage_line(width, record.stage, record.getMessage())

    handler = Printed()
    loggers = [logging.getLogger(name) for name in ("prefect.task_runs", "prefect.flow_runs")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate


def end_line(outcome: Outcome) -> str:
    """Return the line that ends a stage's output."""
    if outcome.state == "Completed":
        return f"done in {outcome.seconds:.1f} s"
    return outcome.message


def failure_text(outcomes: dict[str, Outcome], not_run: list[str]) -> str:
    """Return the failed stages with their last lines, the stages not run because of them, and how to resume."""
    bad = {name: o for name, o in outcomes.items() if o.state not in ("Completed", "Cached")}
    lines = []
    for name, outcome in bad.items():
        lines.append(f"Failed: {name}, {outcome.message} (after {outcome.seconds:.0f} s)")
        lines += [f"    {line}" for line in outcome.tail]
    if not_run:
        lines.append(f"Not run because of it: {', '.join(not_run)}")
    return "\n".join([*lines, f"{RESUME} `dvc repro {' '.join(bad)}`."])


def closing_text(root: Path, planned: Sequence[Stage]) -> str:
    """Return the closing table and the commands that show more.

    The table is shown if the evaluation is among the ``planned`` stages, which are up to date now.
    """
    summary = root / "reports" / "eval" / "summary.txt"
    lines = []
    if summary.exists() and any(stage.name == EVALUATION for stage in planned):
        lines = [summary.read_text(encoding="utf-8").rstrip(), ""]
        if (root / PAGE).exists():
            lines.append(f"Report:           {PAGE}")
    elif summary.exists():
        lines = [f"{summary.relative_to(root)} is of an earlier run. For these models: make run", ""]
    if pipelines.run_links(root):
        server = redact(os.environ.get("MLFLOW_TRACKING_URI", ""))
        lines.append(f"Curves and runs:  {server or '.venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db'}")
    lines.append("Every metric:     .venv/bin/dvc metrics show")
    lines.append("Every flow run:   make serve")
    return "\n".join(lines)
