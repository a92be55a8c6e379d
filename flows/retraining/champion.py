"""Check the champion out, and measure it on the held-out sets of the new model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.execution.stage_process import run
from flows.planned import Stage
from flows.retraining import git, registry, workspace
from flows.retraining.scores import FINAL, MEASURE
from stages.contract.errors import UserError
from stages.contract.identity import locked_stages
from stages.contract.tracking import locations, pipelines


def check_out_champion(repository: Path) -> Path:
    """Check out the champion's weights into .verdict/champion, from DVC's cache or remote; return their folder.

    Raises UserError if there is no champion, its commit is not here, or its weights are in neither cache nor remote.
    """
    with registry.registry_client(locations.home(repository)) as client:
        version = registry.by_alias(client, registry.CHAMPION)
    if version is None:
        raise UserError(f"no version of {registry.name()} is champion yet. make retrain promotes the first.")
    commit, tree = registry.tag(version, "commit"), repository / ".verdict" / "champion"
    if not git.succeeds(repository, "cat-file", "-e", commit):
        raise UserError(f"commit {commit[:10]} of the champion, version {version.number}, is not here: git pull")
    git.worktree(repository, tree, commit)
    workspace.share_dvc(repository, tree)
    if not workspace.restore_outs(tree, [str(tree / "out" / FINAL)]):
        raise UserError(
            f"the weights of the champion, version {version.number}, are in neither DVC's cache nor its remote. Run "
            "dvc push on the machine that trained them."
        )
    return tree / "out" / FINAL


def measure_champion(
    repository: Path, tree: Path, candidate: str, commit: str, emit: Callable[[str], None], env: dict[str, str],
    lifeline: int,
) -> None:  # fmt: skip
    """Make ``tree`` a worktree with the eval stage's outs of the champion, the model of ``commit``.

    If the held-out sets and the code that measures are the same in ``commit`` and in ``candidate``, the outs are the
    recorded ones. Otherwise the stage runs again, on the new sets, with the models of the champion's dvc.lock.

    Args:
        candidate: the commit with the new data.
        emit, env, lifeline: see :func:`flows.execution.stage_process.run`; VERDICT_PIPELINE names a new pipeline.

    Raises:
        UserError: the champion's outs are in neither cache nor remote, or the eval stage failed.
    """
    locks = [git.git(repository, "show", f"{revision}:dvc.lock") for revision in (commit, candidate)]
    git.worktree(repository, tree, candidate)
    workspace.share_dvc(repository, tree)
    (tree / "dvc.lock").write_text(locks[0] + "\n", encoding="utf-8")
    same = held_out(locks[0]) == held_out(locks[1])
    deps, outs = _tracked(tree)
    if not workspace.restore_outs(tree, outs if same else deps):
        raise UserError(
            f"the champion of commit {commit[:10]} cannot be compared: its outs are in neither DVC's cache nor its "
            "remote. Run dvc push where they were made, or remove the alias champion: the next model then counts as "
            "the first."
        )
    if not same:
        emit("the held-out sets or the measuring code changed: the champion is measured again")
        pipelines.begin_pipeline(env["VERDICT_PIPELINE"], repository)
        outcome = run(Stage(MEASURE, (), ("its inputs changed",)), tree, emit, env, lifeline)
        pipelines.close_pipeline(env["VERDICT_PIPELINE"], {MEASURE: outcome.state}, tree)
        if outcome.state not in ("Completed", "Cached"):
            raise UserError("\n".join([f"measuring the champion again: {outcome.message}", *outcome.tail]))


def held_out(lock: str) -> dict[str, Any]:
    """Return the eval stage's inputs that no stage makes, its command and parameters, from the text of a dvc.lock."""
    entry = locked_stages(lock).get(MEASURE)
    if entry is None:
        raise UserError(
            f"dvc.lock has no entry for stage {MEASURE}: the model was never measured. Run dvc repro {MEASURE}."
        )
    external, paths = inputs(lock), [dep["path"] for dep in entry.get("deps", [])]
    deps = {path: external[path] for path in paths if path in external}
    return {"cmd": entry["cmd"], "deps": deps, "params": entry.get("params", {})}


def inputs(lock: str) -> dict[str, str]:
    """Return path -> DVC's md5 of the inputs that no stage makes (data and code), from the text of a dvc.lock."""
    stages = locked_stages(lock).values()
    outs = [Path(out["path"]) for entry in stages for out in entry.get("outs", [])]
    deps = {dep["path"]: dep.get("md5") for entry in stages for dep in entry.get("deps", [])}
    made = {path for path in deps for out in outs if Path(path).is_relative_to(out) or out.is_relative_to(path)}
    return {path: md5 for path, md5 in deps.items() if path not in made}


def model_hash(lock: str, path: str) -> str:
    """Return DVC's md5 of the out ``path``, from the text of a dvc.lock. Raises UserError if no stage makes it."""
    stages = locked_stages(lock)
    hashes = [out.get("md5") for entry in stages.values() for out in entry.get("outs", []) if out["path"] == path]
    if not hashes:
        raise UserError(f"no stage of dvc.yaml makes {path}, the model that is promoted.")
    return hashes[0]


def _tracked(tree: Path) -> tuple[list[str], list[str]]:
    """Return the eval stage's deps that DVC tracks, and its outs, as absolute paths."""
    from dvc.repo import Repo

    with Repo(str(tree)) as repo:
        stage = repo.stage.load_one(path=str(tree / "dvc.yaml"), name=MEASURE)
        kept = [out.fs_path for out in repo.index.outs if out.use_cache]
        deps = [d.fs_path for d in stage.deps if any(Path(d.fs_path).is_relative_to(out) for out in kept)]
        return deps, [out.fs_path for out in stage.outs]
