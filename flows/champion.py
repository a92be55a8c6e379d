"""The champion's figures on the held-out sets the new model was measured on."""

from collections.abc import Callable
from pathlib import Path

from ruamel.yaml import YAML

from flows import git, workspace
from flows.graph import Stage
from flows.scores import MEASURE
from flows.stage import run
from stages.contract.errors import UserError


def measure(
    repository: Path, tree: Path, candidate: str, commit: str, emit: Callable[[str], None], env: dict, lifeline: int
) -> None:
    """Make ``tree`` a worktree in which the eval stage's outs are those of the champion, the model of ``commit``.

    If neither the held-out sets nor what measures them differ between ``commit`` and ``candidate``, the commit with
    the new data, they are what was recorded then. Otherwise the stage runs again, on the new sets, with the models
    that the champion's dvc.lock names; ``emit``, ``env`` and ``lifeline`` are for :func:`flows.stage.run`.

    Raises:
        UserError: the champion's outs are in neither cache nor remote, or measuring them failed.
    """
    locks = [git.git(repository, "show", f"{revision}:dvc.lock") for revision in (commit, candidate)]
    git.worktree(repository, tree, candidate)
    workspace.share_dvc(repository, tree)
    (tree / "dvc.lock").write_text(locks[0] + "\n", encoding="utf-8")
    same = held_out(locks[0]) == held_out(locks[1])
    deps, outs = _tracked(tree)
    if not workspace.restore(tree, outs if same else deps):
        raise UserError(
            f"the champion of commit {commit[:10]} cannot be compared: what it made is in neither DVC's cache nor its "
            "remote. dvc fetch it there, or remove the alias champion, and the next model is taken as the first."
        )
    if not same:
        emit("the held-out sets, or what measures them, changed: the champion is measured again")
        outcome = run(Stage(MEASURE, (), ("its inputs changed",)), tree, emit, env, lifeline)
        if outcome.state not in ("Completed", "Cached"):
            raise UserError("\n".join([f"measuring the champion again: {outcome.message}", *outcome.tail]))


def held_out(lock: str) -> dict:
    """What the eval stage reads that no stage makes, its command and parameters, from the text of a dvc.lock."""
    entry = YAML(typ="safe").load(lock)["stages"][MEASURE]
    given, deps = inputs(lock), [dep["path"] for dep in entry["deps"]]
    deps = {path: given[path] for path in deps if path in given}
    return {"cmd": entry["cmd"], "deps": deps, "params": entry.get("params", {})}


def inputs(lock: str) -> dict[str, str]:
    """path -> DVC's md5 of all that stages read and none makes, data and code, from the text of a dvc.lock."""
    stages = YAML(typ="safe").load(lock)["stages"].values()
    made = [out["path"] for entry in stages for out in entry.get("outs", [])]
    deps = {dep["path"]: dep["md5"] for entry in stages for dep in entry.get("deps", [])}
    return {path: md5 for path, md5 in deps.items() if not any(Path(path).is_relative_to(out) for out in made)}


def model_hash(lock: str, path: str) -> str:
    """DVC's md5 of the out at ``path``, from the text of a dvc.lock. Raises UserError if no stage makes it."""
    stages = YAML(typ="safe").load(lock)["stages"]
    found = [out["md5"] for entry in stages.values() for out in entry.get("outs", []) if out["path"] == path]
    if not found:
        raise UserError(f"no stage of dvc.yaml makes {path}, the model that is promoted.")
    return found[0]


def _tracked(tree: Path) -> tuple[list[str], list[str]]:
    """The deps of the eval stage that DVC keeps, and its outs, as absolute paths."""
    from dvc.repo import Repo

    with Repo(str(tree)) as repo:
        stage = repo.stage.load_one(path=str(tree / "dvc.yaml"), name=MEASURE)
        kept = [out.fs_path for out in repo.index.outs if out.use_cache]
        deps = [d.fs_path for d in stage.deps if any(Path(d.fs_path).is_relative_to(out) for out in kept)]
        return deps, [out.fs_path for out in stage.outs]
