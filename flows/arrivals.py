"""New data: files that arrived, taken into the folders that params.yaml names."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from flows.git import git
from flows.workspace import run_dvc
from stages.contract.errors import UserError
from stages.contract.params import Data, Params

SOURCES = tuple(Data.model_fields)
GIT_LIMIT = 10_000_000  # bytes of a file that git may keep


@dataclass(frozen=True)
class Arrival:
    source: str  # a key of params.data
    path: Path
    md5: str


def arrived(files: list[str], inbox: Path | None) -> list[Arrival]:
    """What ``files`` and ``inbox`` hold, in order of source and name, each content once.

    A file is stated as ``path`` or ``SOURCE=path``; without a source it is text for pretraining. In the inbox the
    source is the sub-folder's name. Hidden files, and .part and .tmp, which are still being written, are left.

    Raises:
        UserError: no such file, or a sub-folder of the inbox that is no source.
    """
    found = [_stated(text) for text in files]
    if inbox is not None:
        if not inbox.is_dir():
            raise UserError(f"{inbox}: no such folder. It is where new data arrives (--inbox, VERDICT_INBOX).")
        found += [(_sub_folder(path, inbox), path) for path in inbox.rglob("*") if path.is_file()]
        found = [(source, path) for source, path in found if source]
    unique = {(source, _md5(path)): path for source, path in sorted(found, reverse=True)}
    return sorted(
        (Arrival(source, path, md5) for (source, md5), path in unique.items()), key=lambda a: (a.source, a.path)
    )


def take_in(arrivals: list[Arrival], tree: Path, params: Params) -> list[str]:
    """Copy what is new into the data folders of the worktree ``tree`` and let DVC or git track it.

    A folder that DVC tracks, or that is not there yet, is DVC's; in one that git tracks the file becomes git's. A
    file whose content is already there under any name is not new.

    Returns:
        A line a new file: path and md5.

    Raises:
        UserError: the source is a single file; the name does not match its pattern; too large for git.
    """
    lines, folders = [], set()
    for arrival in arrivals:
        source = getattr(params.data, arrival.source)
        folder = tree / source.path
        key = f"data.{arrival.source}"
        if folder.is_file():
            raise UserError(_single_file(key, source.path))
        if not folder.resolve().is_relative_to(tree.resolve()):
            raise UserError(
                f"{key}.path in params.yaml, {source.path}, is outside of the repository; nobody versions it."
            )
        if Path(f"{folder}.dvc").exists() and not folder.exists():  # only what is new would be left of it
            raise UserError(
                f"{source.path} is tracked by DVC and in neither its cache nor its remote. dvc pull {source.path} says "
                f"more; where the data still is, dvc push {source.path} brings it there."
            )
        if _kept(arrival, folder):
            continue
        target = _free_name(folder, arrival)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(arrival.path, target)
        if target not in set(folder.glob(source.files)):
            raise UserError(f"{arrival.path}: {key}.files in params.yaml is {source.files!r}, which does not match it.")
        lines.append(f"{target.relative_to(tree)}  md5 {arrival.md5}")
        folders.add(source.path)
    for path in sorted(folders):
        _track(tree, path)
    return lines


def _track(tree: Path, path: str) -> None:
    if git(tree, "ls-files", "--", path):
        new = [tree / name for name in git(tree, "ls-files", "-z", "--others", "--", path).split("\0") if name]
        if large := [p for p in new if p.stat().st_size > GIT_LIMIT]:
            raise UserError(
                f"{large[0].name} is larger than git should keep, and git tracks {path}. Give the folder to DVC: "
                f"git rm -r -q --cached {path} && dvc add {path} && git add {path}.dvc, and commit."
            )
        git(tree, "add", "--", path)
        return
    run_dvc(tree, "add", "-q", path)
    ignored = Path(path).parent / ".gitignore"
    git(tree, "add", "--", f"{path.rstrip('/')}.dvc", *[str(ignored)] * (tree / ignored).exists())


def _stated(text: str) -> tuple[str, Path]:
    source, equals, rest = text.partition("=")
    source, path = (source, Path(rest)) if equals and source in SOURCES else ("pretrain", Path(text))
    if not path.is_file():
        raise UserError(f"{path}: no such file. New data is stated as FILE or SOURCE=FILE ({', '.join(SOURCES)}).")
    return source, path


def _sub_folder(path: Path, inbox: Path) -> str | None:
    """The source a file of the inbox is for; None: it is hidden or not complete."""
    parts = path.relative_to(inbox).parts
    if any(part.startswith(".") for part in parts) or path.suffix in (".part", ".tmp"):
        return None
    if len(parts) == 1:
        return "pretrain"
    if parts[0] not in SOURCES:
        raise UserError(f"{path}: no source is called {parts[0]!r}. Folders of the inbox: {', '.join(SOURCES)}.")
    return parts[0]


def _kept(arrival: Arrival, folder: Path) -> bool:
    size = arrival.path.stat().st_size
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size == size] if folder.is_dir() else []
    return any(_md5(path) == arrival.md5 for path in files)


def _free_name(folder: Path, arrival: Arrival) -> Path:
    target = folder / arrival.path.name
    stem, dot, suffixes = arrival.path.name.partition(".")
    return folder / f"{stem}-{arrival.md5[:8]}{dot}{suffixes}" if target.exists() else target


def _single_file(key: str, path: str) -> str:
    name = Path(path).name
    folder = Path(path).parent / name.partition(".")[0]
    return (
        f"{key}.path in params.yaml is the file {path}; new files need a folder. Make it one: mkdir {folder} && "
        f"git mv {path} {folder}/, set {key}.path: {folder}, and commit."
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
