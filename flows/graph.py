"""The plan: what DVC's graph says must run, and why. dvc.yaml is its only source."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from stages.contract.errors import UserError
from stages.contract.params import load_params


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml and what is to be done about it."""

    name: str  # its address for `dvc repro` at the repository's root
    upstream: tuple[str, ...]  # the stages whose outs it reads
    reasons: tuple[str, ...]  # why it runs; none: its recorded result still holds
    force: bool = False  # run even if DVC finds nothing changed
    resource: str = "cpu"  # from its `meta:`, like the next two
    retries: int = 0  # after a preemption
    timeout: float | None = None  # seconds

    @property
    def fresh(self) -> bool:
        return not self.reasons


def plan(root: Path, targets: Iterable[str] = (), force: Iterable[str] = ()) -> list[Stage]:
    """The stages of the DVC repository at ``root`` with a command, upstream first.

    ``targets`` limits the plan to these stages and what they depend on. A stage runs if DVC finds it changed, if
    it is in ``force``, or if a stage upstream runs; the last may still turn out unchanged.

    Raises:
        UserError: no DVC repository, an invalid params.yaml or dvc.yaml, an unknown stage, an input that is
            missing, another DVC process at work.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    load_params(os.path.relpath(root / "params.yaml"))
    try:
        with Repo(str(root)) as repo, repo.lock:
            return _plan(repo, Path(root), list(targets), set(force))
    except LockError as e:
        raise UserError(f"another DVC process is at work here; wait for it to end. {one_line(e)}") from None
    except DvcException as e:
        raise UserError(one_line(e)) from None


@contextmanager
def override(params: Path, overrides: list[str]) -> Iterator[None]:
    """Set ``overrides`` ("dpo.beta=0.2", Hydra's grammar) in the file ``params``, comments kept, with DVC's own code.

    They stay there, as after `dvc exp run -S`: outs in the workspace and params.yaml belong together. Only if the
    block refuses them does the file get its old text back.

    Raises:
        UserError: an unknown key, or what is no override.
    """
    from dvc.exceptions import DvcException

    if not params.is_file():
        load_params(os.path.relpath(params))  # says so
    before = params.read_text(encoding="utf-8") if overrides else ""
    try:
        if overrides:
            from dvc.utils.hydra import apply_overrides

            apply_overrides(params, overrides)
        yield
    except (DvcException, UserError) as e:
        if overrides:
            params.write_text(before, encoding="utf-8")
        raise e if isinstance(e, UserError) else UserError(f"-S {' '.join(overrides)}: {one_line(e)}") from None


def _plan(repo, root: Path, targets: list[str], force: set[str]) -> list[Stage]:
    import networkx

    graph = repo.index.graph  # edges point upstream
    names = {stage: address(stage, root) for stage in graph}
    by_name = {name: stage for stage, name in names.items() if stage.cmd}
    if unknown := [name for name in [*targets, *sorted(force)] if name not in by_name]:
        raise UserError(f"no stage {', '.join(map(repr, unknown))} in dvc.yaml. Stages: {', '.join(by_name)}.")
    wanted = [by_name[name] for name in targets] or list(graph)
    wanted = set(wanted).union(*(networkx.descendants(graph, stage) for stage in wanted))
    stages: dict[str, Stage] = {}
    missing: list[str] = []
    for stage in upstream_first(graph):
        if stage not in wanted or not stage.cmd:
            continue
        name = names[stage]
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


def upstream_first(graph) -> list:
    """The stages of DVC's ``graph``, whose edges point upstream: each after those it depends on, else data first and
    the others in the order of the file."""
    import networkx

    position = {stage: k if stage.cmd else -1 for k, stage in enumerate(graph)}
    return list(networkx.lexicographical_topological_sort(graph.reverse(copy=False), key=position.__getitem__))


def address(stage, root: Path) -> str:
    """``name``, or ``folder/dvc.yaml:name``. DVC's own ``stage.addressing`` depends on the current folder."""
    file = os.path.relpath(stage.path, root)
    name = getattr(stage, "name", None)
    if name is None:
        return file
    return name if file == "dvc.yaml" else f"{file}:{name}"


def _changes(stage, rerun: list) -> list[str]:
    """What DVC finds changed, in words; not what the stages in ``rerun`` are about to write anyway."""
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


def _describe(status: dict, prefix: str) -> list[str]:
    """DVC's status of one dep or out, {path: word} or {path: {param: word}}, in words."""
    words = {"modified": "changed", "deleted": "missing"}
    flat = []
    for path, state in status.items():
        pairs = state.items() if isinstance(state, dict) else [(path, state)]
        flat += [f"{prefix}{key} {words.get(word, word)}" for key, word in pairs]
    return flat


def _made_by(dep, stages: list) -> bool:
    return any(_overlap(dep.fs_path, out.fs_path) for stage in stages for out in stage.outs)


def _overlap(one: str, other: str) -> bool:
    """Whether two absolute paths are the same or one lies in the other."""
    return os.path.commonpath([one, other]) in (one, other)


def _absent(dep, producers: list) -> bool:
    """Whether a dep is a path that does not exist and that no stage will make."""
    return dep.protocol == "local" and not os.path.lexists(dep.fs_path) and not _made_by(dep, producers)


def _missing(name: str, dep, graph, root: Path) -> str:
    """One line for an input that is not there: who needs it, and what to do."""
    path = os.path.relpath(dep.fs_path, root)
    for stage in graph:
        if not stage.cmd and _made_by(dep, [stage]):
            return f"stage {name} needs {path}, which is not here. Fetch it: dvc pull {address(stage, root)}"
    values = YAML(typ="safe").load((root / "params.yaml").read_text(encoding="utf-8"))
    keys = _keys_with(values, path) or _keys_with(values, dep.def_path)  # stated relative, or absolute
    where = f" Set {' or '.join(keys)} in params.yaml to the path of your data." if keys else ""
    return f"stage {name} needs {path}, which does not exist.{where}"


def _keys_with(value, wanted: str, prefix: str = "") -> list[str]:
    """The dotted keys of nested dictionaries under which ``wanted`` stands."""
    if not isinstance(value, dict):
        return [prefix] if value == wanted else []
    return [k for key, v in value.items() for k in _keys_with(v, wanted, f"{prefix}.{key}" if prefix else str(key))]


def _meta(name: str, meta: dict | None) -> dict:
    """A stage's `meta:` as fields of Stage."""
    meta = meta or {}
    retries, timeout = meta.get("retries", 0), meta.get("timeout")
    if type(retries) is not int or retries < 0:
        raise UserError(f"dvc.yaml: {name}: meta.retries is {retries!r}; it must be a whole number, 0 or more.")
    if timeout is not None and (type(timeout) not in (int, float) or timeout <= 0):
        raise UserError(f"dvc.yaml: {name}: meta.timeout is {timeout!r}; it must be a number of seconds.")
    return {"resource": str(meta.get("resource", "cpu")), "retries": retries, "timeout": timeout}


def one_line(error: Exception) -> str:
    """An exception and its causes as one line, without repeating itself."""
    text = ""
    while error:
        words = " ".join(str(error).split())
        text += f"{': ' if text else ''}{words}" if words not in text else ""
        error = error.__cause__
    return text
