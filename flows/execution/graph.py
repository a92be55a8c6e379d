"""The plan: which stages of DVC's graph must run, and why. dvc.yaml is its only source."""

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.execution.waiting import Occupied
from flows.planned import Stage
from stages.contract.errors import UserError, one_line, shorten
from stages.contract.identity import MOST_LOCKED, check_inputs, locked_stages
from stages.contract.params import load_params, read_params
from stages.contract.yaml_file import parse_yaml, read_text
from stages.scaling.budget import check_budget

if TYPE_CHECKING:
    from dvc.dependency.base import Dependency
    from dvc.repo import Repo
    from dvc.stage import Stage as DvcStage
    from networkx import DiGraph

MOST_RETRIES = 1000

NO_GIT = "Clone the repository, or make one here: git init; or use DVC without git: dvc config core.no_scm true"


def plan(root: Path, targets: Iterable[str] = (), force: Iterable[str] = ()) -> list[Stage]:
    """Return the stages of the DVC repository at ``root`` with a command, upstream first; see :func:`plan_stages`.

    Raises:
        UserError, Occupied: see :func:`open_repo` and :func:`plan_stages`.
    """
    with open_repo(root) as repo:
        return plan_stages(repo, list(targets), set(force))


@contextmanager
def open_repo(root: Path) -> "Iterator[Repo]":
    """Open the DVC repository at ``root`` and take DVC's lock.

    Raises:
        UserError: no DVC repository, no git repository, an invalid params.yaml, dvc.yaml or dvc.lock; DVC's own
            errors in the block.
        Occupied: another DVC process holds its lock.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo
    from dvc.scm import SCMError

    check_budget(load_params(os.path.relpath(root / "params.yaml")))
    _check_dvc_files(root)
    quiet_dvc()
    try:
        with Repo(str(root)) as repo, repo.lock:
            yield repo
    except LockError as e:
        raise Occupied(f"another DVC process is at work here; wait for it to end. {one_line(e)}") from None
    except SCMError as e:
        raise UserError(f"{one_line(e)}. {NO_GIT}") from None
    except (DvcException, OSError) as e:
        raise UserError(one_line(e)) from None


def quiet_dvc() -> None:
    """Turn off DVC's log, which is written for a person who runs `dvc`."""
    import dvc  # noqa: F401 (it sets the levels when it is imported)

    for name in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _check_dvc_files(root: Path) -> None:
    """Raise UserError if dvc.yaml or dvc.lock is no YAML, or is too large for DVC to parse."""
    for name in ("dvc.yaml", "dvc.lock"):
        path = root / name
        if os.path.lexists(path):
            where, text = os.path.relpath(path), read_text(path)
            locked_stages(text, where) if name == "dvc.lock" else parse_yaml(text, where, most=MOST_LOCKED)


def plan_stages(repo: "Repo", targets: list[str], force: set[str]) -> list[Stage]:
    """Return the stages of ``repo`` with a command, upstream first.

    A stage runs if DVC finds it changed, if it is in ``force``, or if a stage upstream runs. In the last case DVC may
    still find it unchanged when its turn comes.

    Args:
        targets: limit the plan to these stages and those they depend on; the name of a matrix stands for all of it.
        force: run these even if nothing changed.

    Raises:
        UserError: an unknown stage, an input that is missing or that DVC does not hash.
    """
    import networkx

    root, graph = Path(repo.root_dir), graph_of(repo)
    names = {stage: address(stage, root) for stage in graph}
    by_name = {name: stage for stage, name in names.items() if stage.cmd}
    targets, force = _expanded(targets, by_name), set(_expanded(sorted(force), by_name))
    if unknown := [name for name in [*targets, *sorted(force)] if name not in by_name]:
        raise UserError(f"no stage {', '.join(map(repr, unknown))} in dvc.yaml. Stages: {', '.join(by_name)}.")
    ends = [by_name[name] for name in targets] or list(graph)
    wanted = set(ends).union(*(networkx.descendants(graph, stage) for stage in ends))
    stages: dict[str, Stage] = {}
    missing: list[str] = []
    for stage in upstream_first(graph):
        if stage not in wanted or not stage.cmd:
            continue
        name = names[stage]
        check_inputs(stage)  # before DVC opens them
        producers = [up for up in graph.successors(stage) if up.cmd]
        rerun = [up for up in producers if not stages[names[up]].fresh]
        reasons = (
            [f"forced with --force {name}"] * (name in force)
            + _changes(stage, rerun)
            + ([f"after {', '.join(sorted(names[up] for up in rerun))}"] if rerun else [])
        )
        if reasons:
            missing += [_missing(name, dep, graph, root) for dep in stage.deps if _absent(dep, producers)]
        upstream = tuple(sorted(names[up] for up in producers))
        stages[name] = Stage(name, upstream, tuple(reasons), name in force, **_meta(name, stage.meta))
    if missing:
        raise UserError("\n".join(missing))
    return list(stages.values())


def refuse_wrong_data(planned: list[Stage]) -> None:
    """Raise UserError if the stage `check` is planned and would refuse the repository in the current folder.

    For commands that have to wait for Prefect's server before any stage starts: ten seconds, thirty in a new clone.
    """
    if any(stage.name == "check" and not stage.fresh for stage in planned):
        from stages.check import refuse_wrong_examples

        refuse_wrong_examples(load_params())


def _expanded(targets: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return ``targets``; the name of a matrix is replaced by the names of its stages."""
    members = {target: [name for name in known if name.startswith(f"{target}@")] for target in targets}
    return [name for target in targets for name in members[target] or [target]]


def graph_of(repo: "Repo") -> "DiGraph":
    """Return DVC's graph of the stages of ``repo``; its edges point upstream."""
    try:
        return repo.index.graph
    except (TypeError, ValueError, KeyError, AttributeError) as e:  # DVC does not check its files everywhere
        raise UserError(f"DVC cannot use dvc.yaml or a .dvc file: {type(e).__name__}: {one_line(e)}") from None


def upstream_first(graph: "DiGraph") -> "list[DvcStage]":
    """Return the stages of DVC's ``graph`` in topological order.

    Ties: data first, then the order of dvc.yaml.
    """
    import networkx

    position = {stage: k if stage.cmd else -1 for k, stage in enumerate(graph)}
    return list(networkx.lexicographical_topological_sort(graph.reverse(copy=False), key=position.__getitem__))


def address(stage: "DvcStage", root: Path) -> str:
    """Return ``name``, or ``folder/dvc.yaml:name``. DVC's own ``stage.addressing`` depends on the current folder."""
    file = os.path.relpath(stage.path, root)
    name = getattr(stage, "name", None)
    if name is None:
        return file
    return name if file == "dvc.yaml" else f"{file}:{name}"


def _changes(stage: "DvcStage", rerun: "list[DvcStage]") -> list[str]:
    """Describe the changes that DVC finds, without the deps that the stages in ``rerun`` will write again."""
    if not stage.status():  # under DVC's read lock: LockError if another process is at work on these paths
        return []
    if all(not out.hash_info for out in stage.outs) and stage.outs:
        return ["no recorded result"]
    deps = [] if stage.frozen else [dep for dep in stage.deps if not _made_by(dep, rerun)]
    words = [text for dep in deps for text in _describe(dep.status(), "")]
    words += [text for out in stage.outs for text in _describe(out.status(), "out ")]
    words += ["command changed"] * stage.changed_stage()
    words += ["has neither deps nor outs, or always_changed"] * bool(stage.is_callback or stage.always_changed)
    return words


def _describe(status: dict[str, Any], prefix: str) -> list[str]:
    """Describe DVC's status of one dep or out: {path: word} or {path: {param: word}}."""
    words = {"modified": "changed", "deleted": "missing"}
    flat = []
    for path, state in status.items():
        pairs = state.items() if isinstance(state, dict) else [(path, state)]
        flat += [f"{prefix}{key} {words.get(word, word)}" for key, word in pairs]
    return flat


def _made_by(dep: "Dependency", stages: "list[DvcStage]") -> bool:
    return any(_overlap(dep.fs_path, out.fs_path) for stage in stages for out in stage.outs)


def _overlap(one: str, other: str) -> bool:
    """Whether two absolute paths are the same or one lies in the other."""
    return os.path.commonpath([one, other]) in (one, other)


def _absent(dep: "Dependency", producers: "list[DvcStage]") -> bool:
    """Whether a dep is a path that does not exist and that no stage will make."""
    return dep.protocol == "local" and not os.path.lexists(dep.fs_path) and not _made_by(dep, producers)


def _missing(name: str, dep: "Dependency", graph: "DiGraph", root: Path) -> str:
    """Return the error line for a missing input: the stage that needs it, and what to do."""
    path = os.path.relpath(dep.fs_path, root)
    for stage in graph:
        if not stage.cmd and _made_by(dep, [stage]):
            return f"stage {name} needs {path}, which is not here. Fetch it: dvc pull {address(stage, root)}"
    values = read_params(root / "params.yaml")
    keys = _keys_with(values, path) or _keys_with(values, dep.def_path)  # stated relative, or absolute
    where = f" Set {' or '.join(keys)} in params.yaml to the path of your data." if keys else ""
    return f"stage {name} needs {path}, which does not exist.{where}"


def _keys_with(value: object, wanted: str, prefix: str = "") -> list[str]:
    """Return the dotted keys of a nested dictionary whose value is ``wanted``."""
    if not isinstance(value, dict):
        return [prefix] if value == wanted else []
    return [k for key, v in value.items() for k in _keys_with(v, wanted, f"{prefix}.{key}" if prefix else str(key))]


def _meta(name: str, meta: object) -> dict[str, Any]:
    """Return a stage's `meta:` as fields of Stage."""
    meta = {} if meta is None else meta
    if not isinstance(meta, dict):
        raise UserError(f"dvc.yaml: {name}: meta is {shorten(repr(meta))}; it must be a mapping of keys to values.")
    retries, timeout, resource = meta.get("retries", 0), meta.get("timeout"), meta.get("resource", "cpu")
    if type(retries) is not int or not 0 <= retries <= MOST_RETRIES:
        raise UserError(
            f"dvc.yaml: {name}: meta.retries is {shorten(repr(retries))}; it must be a whole number, "
            f"0 or more, at most {MOST_RETRIES}."
        )
    if timeout is not None and (type(timeout) not in (int, float) or not 0 < timeout <= threading.TIMEOUT_MAX):
        raise UserError(f"dvc.yaml: {name}: meta.timeout is {shorten(repr(timeout))}; it must be a number of seconds.")
    if not isinstance(resource, str):
        raise UserError(f"dvc.yaml: {name}: meta.resource is {shorten(repr(resource))}; it must be cpu or gpu.")
    return {"resource": resource, "retries": retries, "timeout": timeout}
