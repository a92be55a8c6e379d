"""Take new data in: copy files into the folders that params.yaml names, and let git or DVC track them."""

import shutil
from pathlib import Path

from flows.retraining import inbox
from flows.retraining.git import git
from flows.retraining.inbox import Arrival, Intake, md5_of
from flows.retraining.workspace import run_dvc
from stages.contract.errors import UserError
from stages.contract.params import Params, Source

GIT_LIMIT = 1_000_000  # bytes; a larger file is DVC's


def take_in(arrivals: list[Arrival], tree: Path, params: Params) -> Intake:
    """Copy new files into the data folders of the worktree ``tree`` and track them.

    A folder that DVC tracks, or that does not exist yet, is DVC's; in one that git tracks, git tracks the file, or DVC
    if it is large. A file whose content is already there under any name is not new. A file of the inbox that cannot be
    used is refused, and the rest goes on.

    Raises UserError for a file that a person named and that cannot be used, and for a source that takes no files.
    """
    intake, added = Intake(), dict[str, list[Path]]()
    for arrival in arrivals:
        source: Source | None = getattr(params.data, arrival.source, None)
        if source:
            _check_folder(f"data.{arrival.source}", source, tree)
            if _is_kept(arrival, tree / source.path):
                continue
        try:
            inbox.check(arrival, params)
            assert source  # or check would have raised
            target = _free_name(arrival, source, tree / source.path)
        except UserError as e:
            if arrival.inbox is None:
                raise UserError(f"{arrival.path}: {e}") from None
            intake.refused.append(arrival.refuse(str(e)))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(arrival.path, target)
        intake.arrivals.append(arrival)
        intake.lines.append(f"{target.relative_to(tree)}  md5 {arrival.md5}")
        added.setdefault(source.path, []).append(target)
    for folder, files in sorted(added.items()):
        _track(tree, folder, files)
    return intake


def _free_name(arrival: Arrival, source: Source, folder: Path) -> Path:
    """Return a new path in ``folder`` for the file. Raises UserError if the source's pattern does not match it."""
    from stages.corpus.reading.sources import patterns  # imports pyarrow

    target = folder / arrival.path.name
    if target.exists():
        stem, dot, suffixes = arrival.path.name.partition(".")
        target = folder / f"{stem}-{arrival.md5[:8]}{dot}{suffixes}"
    if not patterns(source)(target.name):
        raise UserError(f"data.{arrival.source}.files in params.yaml is {source.files!r}, which does not match it.")
    return target


def _check_folder(key: str, source: Source, tree: Path) -> None:
    """Raise UserError unless the folder of ``source`` takes new files."""
    folder = tree / source.path
    if folder.is_file():
        name = Path(source.path)
        made = name.parent / name.name.partition(".")[0]
        raise UserError(
            f"{key}.path in params.yaml is the file {name}; new files need a folder. Make it one: mkdir {made} && "
            f"git mv {name} {made}/, set {key}.path: {made}, and commit."
        )
    if not folder.resolve().is_relative_to(tree.resolve()):
        raise UserError(f"{key}.path in params.yaml, {source.path}, is outside of the repository; nobody versions it.")
    if Path(f"{folder}.dvc").exists() and not folder.exists():  # only the new file would be left of it
        raise UserError(
            f"{source.path} is tracked by DVC and in neither its cache nor its remote. dvc pull {source.path} says "
            f"more; where the data still is, dvc push {source.path} brings it there."
        )


def _is_kept(arrival: Arrival, folder: Path) -> bool:
    size = arrival.path.stat().st_size
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size == size] if folder.is_dir() else []
    return any(md5_of(path) == arrival.md5 for path in files)


def _track(tree: Path, folder: str, files: list[Path]) -> None:
    """Let git track the new ``files`` of ``folder``, or DVC: all in a folder that is DVC's, else the large ones."""
    paths = [str(file.relative_to(tree)) for file in files]
    if git(tree, "ls-files", "--", folder):
        large = [path for path, file in zip(paths, files, strict=True) if file.stat().st_size > GIT_LIMIT]
        git(tree, "add", "--", *(path for path in paths if path not in large))
    else:
        large = [folder.rstrip("/")]
    for path in large:
        run_dvc(tree, "add", "-q", path)
        ignored = Path(path).parent / ".gitignore"
        git(tree, "add", "--", f"{path}.dvc", *[str(ignored)] * (tree / ignored).exists())
