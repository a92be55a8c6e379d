"""A sweep as a Prefect flow: Optuna tries params, each point a DVC experiment, several side by side.

    python -m flows.sweep --metric STAGE.KEY -S KEY=LOW..HIGH[:log] -S KEY=ONE,TWO ... [--trials N] [--jobs N]

As a deployment: entrypoint ``flows/sweep.py:sweep``, working directory the repository.
"""

if __name__ == "__main__":  # before Prefect, whose import takes seconds
    import sys

    from flows.cli import sweep_main

    sys.exit(sweep_main())

import contextlib
import itertools
import os
import queue
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows import alerts, console, git, mirror, study, workspace
from flows.lifeline import lifeline
from flows.space import Space, overrides, parse
from flows.trial import Ended, Sweep, attempt, tree
from stages.contract.errors import UserError

HOPELESS = 3  # trials that fail before any succeeds


@flow(name="sweep", persist_result=False, task_runner=ThreadPoolTaskRunner(max_workers=64), **alerts.HOOKS)
def sweep(
    space: list[str],
    metric: str,
    maximize: bool = False,
    trials: int | None = None,
    jobs: int = 1,
    watch: str | None = None,
    name: str = "sweep",
    root: str = ".",
) -> State:
    """Try points of ``space`` until there are ``trials``, and tell which did best by ``metric``.

    Args:
        space: ``KEY=LOW..HIGH``, ``KEY=LOW..HIGH:log`` or ``KEY=ONE,TWO``; KEY as in params.yaml, dotted.
        metric: ``STAGE.KEY`` of reports/STAGE/metrics.json. The pipeline runs up to that stage.
        trials: how many in all, with those of before; default every point of a grid of choices, otherwise 20.
        jobs: how many at once. With several, a stage that wants a GPU has one for itself.
        watch: ``STAGE.NAME`` of what its trainer logs, the lower the better; worse than the median, a trial is stopped.
        name: of the study. The same name goes on with what was stopped.
        root: the git and DVC repository. Trials start from its last commit; its checkout is left alone.

    Final state: Completed with the table of trials; Cancelled, named Busy if the study is at work elsewhere, or
    interrupted; Failed with a message.
    """
    repository = Path(root).resolve()
    try:
        parsed = parse(space, repository / "params.yaml")
        about = Sweep(repository, name, _base(repository), alerts.this_run(), metric, watch, jobs)
        with (
            workspace.recorded_at(repository),
            study.opened(repository, name, about.base, parsed, metric, maximize) as found,
            _places(about, jobs) as slots,
            lifeline() as held,
        ):
            study.fill(found, parsed, study.wanted(parsed, trials))
            try:
                _go_on(about, parsed, found, study.wanted(parsed, trials), slots, held.interrupted)
            finally:
                mirror.show(repository, name, found, metric, _warn)
            return _end(found, metric, held.interrupted)
    except workspace.Busy as e:
        return Cancelled(name="Busy", message=str(e))
    except UserError as e:
        return Failed(message=str(e))


def _base(repository: Path) -> str:
    git.branch(repository)
    if files := workspace.uncommitted(repository, git.changed(repository)):
        raise UserError(f"not committed: {', '.join(files)}. Trials start from what is: commit or stash first.")
    return git.git(repository, "rev-parse", "HEAD")


@contextmanager
def _places(about: Sweep, jobs: int):
    """A queue of slots, each a number and a GPU of its own or None. Their worktrees are gone afterwards."""
    devices = gpus() if jobs > 1 else []
    if devices and jobs > len(devices):
        _warn(f"{len(devices)} at once, not {jobs}: a GPU each")
    free = list(enumerate(devices or [None] * jobs))[:jobs]
    slots: queue.SimpleQueue = queue.SimpleQueue()
    for slot in free:
        slots.put(slot)
    try:
        yield slots
    finally:
        for number, _ in free:
            git.remove_worktree(about.repository, tree(about, number))


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name here."""
    if (stated := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return list(itertools.takewhile(lambda device: device not in ("", "-1"), stated.split(",")))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return []
    return [str(k) for k, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]


def _go_on(about: Sweep, space: Space, found, count: int, slots: queue.SimpleQueue, interrupted) -> None:
    """Start trials as slots are free until ``count`` have ended or somebody interrupts."""
    running: dict = {}
    ended: queue.SimpleQueue = queue.SimpleQueue()
    try:
        while True:
            while not interrupted.is_set() and study.tried(found) + len(running) < count and not slots.empty():
                trial, (slot, device) = study.ask(found, space), slots.get()
                running[trial.number] = slot, device, trial
                _task(about, trial, slot, device, interrupted, ended).submit()
            if not running:
                return
            number, end = ended.get()
            slot, device, trial = running.pop(number)
            slots.put((slot, device))
            _note(found, trial, end)
            if isinstance(end, BaseException):
                raise end  # the others would fail alike
            if _hopeless(found):
                raise UserError(f"the first {HOPELESS} trials failed; the last: {end.message}")
    finally:
        if running:
            interrupted.set()
        while running:
            number, end = ended.get()
            with contextlib.suppress(Exception):  # what is not noted is tried again by the next sweep
                _note(found, running.pop(number)[-1], end)


def _note(found, trial, end: Ended | BaseException) -> None:
    if isinstance(end, BaseException) or end.state == "Cancelled":
        study.interrupted(found, trial)
        return
    if end.experiment:
        trial.set_user_attr("experiment", end.experiment)
    study.finish(found, trial, end.value, end.message if end.state == "Failed" else "")


def _warn(line: str) -> None:
    get_run_logger().warning("%s", line, extra={"stage": "sweep"})


def _hopeless(found) -> bool:
    ended = study.best_first(found)
    return len(ended) >= HOPELESS and all("failed" in trial.user_attrs for trial in ended)


def _task(about: Sweep, trial, slot: int, device: str | None, interrupted: threading.Event, ended: queue.SimpleQueue):
    """A Prefect task that attempts ``trial`` and puts its number and its end, or what it raised, into ``ended``."""
    point, sign = trial.params, -1 if trial.study.direction.name == "MAXIMIZE" else 1

    def report(step: int, value: float) -> bool:
        trial.report(sign * value, step)  # Optuna's pruner goes by the study's direction
        return not trial.should_prune()

    @task(name="trial", task_run_name=f"{about.name}-{trial.number}", cache_policy=NO_CACHE, persist_result=False)
    def attempt_trial() -> State:
        log, began = get_run_logger(), time.monotonic()
        said = " ".join(overrides(point))

        def emit(line: str) -> None:
            log.info("%s", line, extra={"stage": f"{trial.number}"})

        emit(f"trial {trial.number}: {said}")
        try:
            end = attempt(about, trial.number, point, slot, device, emit, report, interrupted)
            trial.set_user_attr("seconds", round(time.monotonic() - began, 1))
        except BaseException as e:
            ended.put((trial.number, e))
            return Failed(message=str(e))
        told = f"{about.metric} {end.value:.6g}" if end.value is not None else end.message or "worse than the median"
        emit(f"trial {trial.number}: {end.state.lower()}, {told}")
        ended.put((trial.number, end))
        kind = {"Failed": Failed, "Cancelled": Cancelled}.get(end.state, Completed)
        return kind(name=end.state, message=f"{said}: {told}")

    return attempt_trial


def _end(found, metric: str, interrupted: threading.Event) -> State:
    """The flow's final state, with the table of trials."""
    trials = study.best_first(found)
    table = console.trials_table(trials, metric)
    if trials:
        create_markdown_artifact(key="trials", markdown=f"```\n{table}\n```", description="Best first")
    if interrupted.is_set():
        told = f"interrupted after {len(trials)} trials; the same command goes on from there"
        return Cancelled(message="\n\n".join([table, told] if trials else [told]))
    best = trials[0].user_attrs.get("experiment") if trials and trials[0].state.name == "COMPLETE" else None
    if best is None:
        return Failed(message=f"{table}\n\nNo trial came to an end.")
    return Completed(message=f"{table}\n\nTake the best: dvc exp apply {best}")
