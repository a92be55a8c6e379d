"""The record of a sweep: an Optuna study in .verdict/sweeps/studies.db, one writer at a time.

The same command resumes a study. A trial that ran when the sweep was killed is repeated first.
"""

import contextlib
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.retraining import git, workspace
from flows.retraining.workspace import exclusive
from flows.sweeps.space import Range, Space, grid
from flows.sweeps.trial import Ended
from stages.contract.errors import UserError

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial, TrialState

SEED = 0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
TRIED = ("COMPLETE", "PRUNED")
STARTUP = 4  # trials that are never pruned: a median of fewer says little


def sweeps_folder(repository: Path) -> Path:
    """Return the folder of the study and of the trials' worktrees."""
    return repository / ".verdict" / "sweeps"


@contextlib.contextmanager
def open_study(repository: Path, name: str, base: str, space: Space, metric: str, maximize: bool) -> "Iterator[Study]":
    """Open the Optuna study ``name`` of the repository, new or resumed, for this process alone.

    Raises:
        UserError: the name does not fit folders and git refs; the study has another space, metric or direction, or
            inputs of stages differ at commit ``base`` from when it began.
        Busy: another process has it open.
    """
    import optuna

    if not NAME.fullmatch(name):  # worktrees of this name are deleted, so it must not lead elsewhere
        raise UserError(f"--name {name}: not a name for experiments. Write letters, digits, - and _, at most 64.")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with exclusive(sweeps_folder(repository) / f"{name}.lock", f"the sweep {name}"):
        about = {"space": _written(space), "metric": metric, "maximize": maximize, "base": base}
        study = _study(repository, name, maximize)
        if not tried(study) and study.user_attrs.get("about", about) != about:  # no trial is lost
            optuna.delete_study(study_name=name, storage=_storage(repository))
            study = _study(repository, name, maximize)
        _check_same(study, name, repository, about)
        # Another seed each time: with the same one, a resumed study would repeat its first points.
        with warnings.catch_warnings(action="ignore"):  # constant_liar, so that parallel trials differ, is new there
            study.sampler = optuna.samplers.TPESampler(seed=SEED + len(study.trials), constant_liar=True)
        _again(study)
        yield study


def _storage(repository: Path) -> str:
    return f"sqlite:///{sweeps_folder(repository) / 'studies.db'}"


def _study(repository: Path, name: str, maximize: bool) -> "Study":
    """Return Optuna's study ``name``; create it if there is none."""
    import optuna

    return optuna.create_study(
        storage=_storage(repository), study_name=name, load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
        direction="maximize" if maximize else "minimize",
    )  # fmt: skip


def ask(study: "Study", space: Space) -> "Trial":
    """Return a new Optuna trial whose point, ``trial.params``, is drawn."""
    trial = study.ask()
    for key, part in space.items():
        if not isinstance(part, Range):
            trial.suggest_categorical(key, part.values)
        elif isinstance(part.low, int):
            trial.suggest_int(key, part.low, part.high, log=part.log)
        else:
            trial.suggest_float(key, part.low, part.high, log=part.log)
    return trial


def trials_wanted(space: Space, trials: int | None) -> int:
    """Return the number of trials: as stated, or every point of a grid, or 20."""
    points = grid(space)
    if points is None:
        return trials or 20
    return min(trials or len(points), len(points))


def fill(study: "Study", space: Space, count: int) -> None:
    """Enqueue the first ``count`` points of a grid that are not in the study yet."""
    for point in (grid(space) or [])[:count]:
        study.enqueue_trial(point, skip_if_exists=True)


def tried(study: "Study") -> int:
    """Return the number of trials that ended by themselves, failures included."""
    return sum(t.state.name in TRIED or (t.state.name == "FAIL" and "failed" in t.user_attrs) for t in study.trials)


def record(study: "Study", trial: "Trial", ended: Ended) -> None:
    """End ``trial`` in the study as it ``ended``; a cancelled one gets no result and its point is in line again."""
    if ended.experiment:
        trial.set_user_attr("experiment", ended.experiment)
    if ended.state == "Failed":
        trial.set_user_attr("failed", ended.message)
    state = {"Completed": "COMPLETE", "Pruned": "PRUNED"}.get(ended.state, "FAIL")
    study.tell(trial, ended.value, state=_state(state))
    if ended.state == "Cancelled":
        study.enqueue_trial(trial.params)


def best_first(study: "Study") -> "list[FrozenTrial]":
    """Return the ended trials: by their metric, then the pruned, then the failed."""
    ended = [t for t in study.trials if t.state.name in TRIED or "failed" in t.user_attrs]
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    rank = {"COMPLETE": 0, "PRUNED": 1, "FAIL": 2}
    return sorted(ended, key=lambda t: (rank[t.state.name], sign * t.value if t.state.name == "COMPLETE" else t.number))


def _state(name: str) -> "TrialState":
    import optuna

    return optuna.trial.TrialState[name]


def _again(study: "Study") -> None:
    """End the trials that a killed process left running, and enqueue them again."""
    for trial in study.trials:
        if trial.state.name == "RUNNING":
            study.tell(trial.number, state=_state("FAIL"))
            # The kill may have come when a part of a grid's point was drawn and the rest only enqueued.
            if point := trial.system_attrs.get("fixed_params", {}) | trial.params:
                study.enqueue_trial(point)


def _check_same(study: "Study", name: str, repository: Path, now: dict[str, Any]) -> None:
    """Raise UserError unless the study has the options ``now`` and stages' inputs are the same at its first commit."""
    if (then := study.user_attrs.get("about")) is None:
        study.set_user_attr("about", now)
        return
    for key in ("space", "metric", "maximize"):
        if then[key] != now[key]:
            raise UserError(
                f"the sweep {name} has begun with another {key}: {json.dumps(then[key])}, now {json.dumps(now[key])}. "
                "Resume it with the same options, or start another: --name OTHER"
            )
    if (first := then.get("base")) in (None, now["base"]):
        return
    names = git.git(repository, "diff", "--name-only", "-z", "--no-renames", first, now["base"]).split("\0")
    if changed := workspace.uncommitted(repository, [name for name in names if name not in ("", "dvc.lock")]):
        raise UserError(
            f"since the sweep {name} began, at commit {first[:10]}, {', '.join(changed[:5])} changed: new trials would "
            "not compare with its own. Begin another: --name OTHER"
        )


def _written(space: Space) -> dict[str, Any]:
    return {key: json.loads(json.dumps(asdict(part))) for key, part in space.items()}
