"""What a person at a terminal reads: the plan, the stages' own lines, the end."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from flows.graph import Stage
from flows.space import said
from flows.stage import GRACE_SECONDS, Outcome, is_chatter
from stages.contract import tracking
from stages.contract.progress import clock

RESUME = "Resume with `make run`, or try only this with"
NOTHING_NEW = "Nothing new: no new data, every stage is up to date, nothing was committed."


def plan_table(stages: list[Stage], seconds: dict[str, float], restored: Sequence[str] = ()) -> str:
    """One line a stage: run, cached or just ``restored``, how long it took the last time (``seconds``; blank where
    unknown), and why it runs."""
    running = [stage for stage in stages if not stage.fresh]
    times = {stage.name: clock(seconds[stage.name]) for stage in running if stage.name in seconds}
    width = max((len(stage.name) for stage in stages), default=0)
    column = max(map(len, times.values()), default=-2) + 2
    brought = [stage.name for stage in stages if stage.fresh and stage.name in restored]
    lines = [f"Plan: {len(running)} of {len(stages)} stages to run, {len(stages) - len(running) - len(brought)} cached"]
    lines[0] += f", {len(brought)} restored" if brought else ""
    if times:
        unknown = len(running) - len(times)
        lines[0] += f"; about {clock(sum(seconds[name] for name in times))} by the last times"
        lines[0] += f", and {unknown} of unknown time" if unknown else ""
    for stage in stages:
        what = f"run     {times.get(stage.name, ''):<{column}}{_shorten(stage.reasons)}" if stage.reasons else "cached"
        what = "restored" if stage.name in brought else what
        lines.append(f"  {stage.name:<{width}}  {what}")
    return "\n".join(lines)


def _shorten(reasons: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(reasons[:most]) + (f" and {len(reasons) - most} more" if len(reasons) > most else "")


def say(text: str) -> None:
    """Print it at once, in one piece. What cannot be printed stops nothing that runs."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        stop_printing()
    except (OSError, ValueError):  # a closed terminal, a full disk, a letter that its encoding has not
        pass


def stage_line(width: int, stage: str, line: str) -> None:
    """Print what a stage says, unless it is DVC's chatter."""
    if not is_chatter(line):
        say(f"{stage:<{width}} | {line}")


def stop_printing() -> None:
    """The reader of stdout, `head` for one, has seen enough; what is left in the buffer has no reader."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def stage_lines(width: int, shown: bool = False) -> Iterator[None]:
    """Meanwhile print what the stages say, unless it is ``shown`` otherwise, and keep Prefect's own log off the
    terminal.

    A log record with the attribute ``stage`` is a stage's line; all records still reach Prefect's API.
    """

    class Printed(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "stage"):
                stage_line(width, record.stage, record.getMessage())

    handler = logging.NullHandler() if shown else Printed()
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
    """A stage's last line."""
    if outcome.state == "Completed":
        return f"done in {outcome.seconds:.1f} s"
    return outcome.message


def say_interrupted() -> None:
    """Tell that an interrupt was heard. Safe in a signal handler."""
    text = f"\nInterrupted. Stopping; a running stage has {GRACE_SECONDS} s to save a checkpoint.\n"
    os.write(sys.__stderr__.fileno(), text.encode())


def failure_text(outcomes: dict[str, Outcome], not_run: list[str]) -> str:
    """What failed, with its last lines; what did not run because of it; the commands that resume."""
    bad = {name: o for name, o in outcomes.items() if o.state not in ("Completed", "Cached")}
    lines = []
    for name, outcome in bad.items():
        lines.append(f"Failed: {name}, {outcome.message} (after {outcome.seconds:.0f} s)")
        lines += [f"    {line}" for line in outcome.tail]
    if not_run:
        lines.append(f"Not run because of it: {', '.join(not_run)}")
    return "\n".join([*lines, f"{RESUME} `dvc repro {' '.join(bad)}`."])


def retrain_failure(text: str) -> str:
    """:func:`failure_text` of a retrain's pipeline, which is not resumed in the person's checkout."""
    lines = [line for line in text.splitlines() if not line.startswith(RESUME)]
    return "\n".join([*lines, "`make retrain` goes on from what is finished."])


def closing_text(root: Path) -> str:
    """The closing table, which the evaluation wrote, and where to look next."""
    summary = root / "reports" / "eval" / "summary.txt"
    lines = [summary.read_text(encoding="utf-8").rstrip(), ""] if summary.exists() else []
    if tracking.run_links(root):
        server = os.environ.get("MLFLOW_TRACKING_URI")
        lines.append(f"Curves and runs:  {server or '.venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db'}")
    lines.append("Every metric:     .venv/bin/dvc metrics show")
    lines.append("Every flow run:   .venv/bin/prefect server start")
    return "\n".join(lines)


def comparison(before: dict[str, float], after: dict[str, float]) -> str:
    """Markdown: a row a figure, of the champion and of the new model."""
    names = list(dict.fromkeys([*after, *before]))
    rows = [f"| {n} | {_figure(before.get(n))} | {_figure(after.get(n))} |" for n in names]
    return "\n".join(["| figure | champion | new |", "|---|---|---|", *rows])


def promotion_message(
    title: str, arrivals: Sequence[str], before: dict[str, float], after: dict[str, float], version: str, why: str = ""
) -> str:
    """The message of the commit: the decision, the new files with their hashes, the figures before and after, and as
    a trailer the version of the registry that is champion from this commit on."""
    figures = [f"  {name}  {_figure(before.get(name))} → {_figure(value)}" for name, value in after.items()]
    parts = [title, why, "\n".join(["New data:", *(f"  {line}" for line in arrivals)]) if arrivals else ""]
    parts += ["\n".join(["Figures, champion before → now:", *figures]) if figures else "", f"Champion: {version}"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def trials_table(trials: list, metric: str) -> str:
    """Optuna's ended ``trials``, best first: number, params, metric, state, time."""
    params = list(dict.fromkeys(key for trial in trials for key in trial.params))
    rows = [["trial", *params, metric, "", "seconds"]]
    for trial in trials:
        done = trial.state.name == "COMPLETE"
        drawn = [trial.params.get(key, "") for key in params]
        values = [f"{value:.4g}" if isinstance(value, float) else said(value) for value in drawn]
        state = trial.user_attrs.get("experiment") or trial.user_attrs.get("failed") or "pruned"
        seconds = f"{trial.user_attrs.get('seconds', 0):.0f}"
        rows.append([str(trial.number), *values, f"{trial.value:.6g}" if done else "-", state, seconds])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
