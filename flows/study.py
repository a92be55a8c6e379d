"""The memory of a sweep: an Optuna study in .verdict/sweeps/studies.db, one writer at a time.

A study is gone on with by the same command. What was running when it was killed is tried again, first.
"""

import contextlib
import fcntl
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from flows import git, workspace
from flows.space import Range, Space, grid
from flows.workspace import Busy
from stages.contract.errors import UserError

SEED = 0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
TRIED = ("COMPLETE", "PRUNED")
STARTUP = 4  # trials that are never pruned: a median of fewer says little


def folder(repository: Path) -> Path:
    """Where the study and the worktrees of trials lie."""
    return repository / ".verdict" / "sweeps"


@contextlib.contextmanager
def opened(repository: Path, name: str, base: str, space: Space, metric: str, maximize: bool) -> Iterator:
    """The Optuna study ``name`` of the repository, new or as it was left, for this process alone.

    Raises:
        UserError: no name for folders and git refs; the study has another space, metric or direction, or what stages
            read is another at commit ``base`` than when it began.
        Busy: another process has it open.
    """
    import optuna

    if not NAME.fullmatch(name):  # worktrees of this name are deleted, so it must not lead elsewhere
        raise UserError(f"--name {name}: not a name for experiments. Write letters, digits, - and _, at most 64.")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder(repository).mkdir(parents=True, exist_ok=True)
    with (folder(repository) / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"the sweep {name} is at work in another process.") from None
        about = {"space": _written(space), "metric": metric, "maximize": maximize}
        study = _study(repository, name, maximize)
        if not tried(study) and study.user_attrs.get("about", about) != about:  # nothing is lost
            optuna.delete_study(study_name=name, storage=_storage(repository))
            study = _study(repository, name, maximize)
        _same(study, name, about)
        _same_ground(study, name, repository, base)
        # Another seed for each beginning: with the same one, a study gone on with would repeat its first points.
        with warnings.catch_warnings(action="ignore"):  # constant_liar, so that parallel trials differ, is new there
            study.sampler = optuna.samplers.TPESampler(seed=SEED + len(study.trials), constant_liar=True)
        _again(study)
        yield study


def _storage(repository: Path) -> str:
    return f"sqlite:///{folder(repository) / 'studies.db'}"


def _study(repository: Path, name: str, maximize: bool):
    """Optuna's study ``name``, made if there is none."""
    import optuna

    return optuna.create_study(
        storage=_storage(repository), study_name=name, load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
        direction="maximize" if maximize else "minimize",
    )  # fmt: skip


def ask(study, space: Space):
    """A trial of Optuna's with its point, ``trial.params``, drawn."""
    trial = study.ask()
    for key, part in space.items():
        if not isinstance(part, Range):
            trial.suggest_categorical(key, part.values)
        elif isinstance(part.low, int):
            trial.suggest_int(key, part.low, part.high, log=part.log)
        else:
            trial.suggest_float(key, part.low, part.high, log=part.log)
    return trial


def wanted(space: Space, trials: int | None) -> int:
    """How many trials there are to be: as stated, or every point of a grid, or 20."""
    points = grid(space)
    if points is None:
        return trials or 20
    return min(trials or len(points), len(points))


def fill(study, space: Space, count: int) -> None:
    """Put the first ``count`` points of a grid in line, those that are not there yet."""
    for point in (grid(space) or [])[:count]:
        study.enqueue_trial(point, skip_if_exists=True)


def tried(study) -> int:
    """How many trials have come to an end of their own, failures included."""
    return sum(t.state.name in TRIED or (t.state.name == "FAIL" and "failed" in t.user_attrs) for t in study.trials)


def interrupted(study, trial) -> None:
    """End ``trial`` without a result; its point is in line again."""
    study.tell(trial, state=_state("FAIL"))
    study.enqueue_trial(trial.params)


def finish(study, trial, value: float | None, failed: str = "") -> None:
    """End ``trial`` with its metric; without one it was pruned, or ``failed`` says why there is none."""
    if failed:
        trial.set_user_attr("failed", failed)
    state = "FAIL" if failed else "PRUNED" if value is None else "COMPLETE"
    study.tell(trial, value, state=_state(state))


def best_first(study) -> list:
    """Optuna's frozen trials that have ended: by their metric, then the pruned, then the failed."""
    ended = [t for t in study.trials if t.state.name in TRIED or "failed" in t.user_attrs]
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    rank = {"COMPLETE": 0, "PRUNED": 1, "FAIL": 2}
    return sorted(ended, key=lambda t: (rank[t.state.name], sign * t.value if t.state.name == "COMPLETE" else t.number))


def _state(name: str):
    import optuna

    return optuna.trial.TrialState[name]


def _again(study) -> None:
    """End what a killed process left running, and put it in line again."""
    for trial in study.trials:
        if trial.state.name == "RUNNING":
            study.tell(trial.number, state=_state("FAIL"))
            # It may have been killed when some of a grid's point was drawn and the rest only in line.
            if point := trial.system_attrs.get("fixed_params", {}) | trial.params:
                study.enqueue_trial(point)


def _same(study, name: str, now: dict) -> None:
    """Raises UserError unless the study is about ``now``."""
    then = study.user_attrs.get("about")
    if then is None:
        study.set_user_attr("about", now)
    for key, value in (then or {}).items():
        if value != now[key]:
            raise UserError(
                f"the sweep {name} has begun with another {key}: {json.dumps(value)}, now {json.dumps(now[key])}. "
                "Go on with it by the same options, or begin another: --name OTHER"
            )


def _same_ground(study, name: str, repository: Path, base: str) -> None:
    """Raises UserError if what stages read has changed since the study's first commit."""
    first = study.user_attrs.get("base")
    if first is None:
        study.set_user_attr("base", base)
    if first in (None, base):
        return
    names = git.git(repository, "diff", "--name-only", "-z", "--no-renames", first, base).split("\0")
    if changed := workspace.uncommitted(repository, [name for name in names if name not in ("", "dvc.lock")]):
        raise UserError(
            f"since the sweep {name} began, at commit {first[:10]}, {', '.join(changed[:5])} changed: new trials would "
            "not compare with its own. Begin another: --name OTHER"
        )


def _written(space: Space) -> dict:
    return {key: json.loads(json.dumps(asdict(part))) for key, part in space.items()}
