"""Find the files of a Source by its pattern. Opens none of them."""

import functools
import os
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

from stages.contract.errors import UserError, shorten
from stages.contract.inputs import walk
from stages.contract.params import Source
from stages.corpus.reading.formats import BY_ENDING, is_known, is_text
from stages.corpus.reading.streams import COMPRESSED

MOST_PATTERNS = 1000
# Files next to data that the hub, `datasets` and repositories write.
ABOUT = re.compile(
    r"(readme|license|licence|notice|changelog|contributing|citation|dataset_?card)(\.(md|txt|rst|cff))?"
    r"|(dataset_infos?|dataset_dict|state)\.json"
)


def source_files(source: Source) -> list[tuple[Path, str]]:
    """Return the files of ``source`` with their relative paths, in order of these. Hidden files are skipped.

    Raises:
        UserError: no such path, a path in it that cannot be read, no matching file, a file of unknown type.
    """
    root = Path(source.path)
    if not os.path.lexists(root):
        raise UserError(f"{source.path}: no such file or folder. Put it there, or change the path in params.yaml.")
    files = walk(root)
    found = [(root, root.name)] if files == [root] else _data(matching(root, files, source))
    if not files:
        raise UserError(f"{source.path}: an empty folder. Put data there, or change the path in params.yaml.")
    if not found:
        raise UserError(f"{source.path}: no file matches {source.files!r}. Change `files` in params.yaml.")
    for _, name in found:
        if not is_known(name):
            raise UserError(
                f"{source.path}: {name}: unknown type of file. Known: {' '.join(BY_ENDING)}, JSONL and "
                f'text also with {" or ".join(COMPRESSED)}. Narrow `files` in params.yaml, e.g. "**/*.jsonl".'
            )
    return found


def _data(files: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Return ``files`` without descriptions of a data set, such as README.md, if some files hold records."""
    about = [name for _, name in files if ABOUT.fullmatch(name.rpartition("/")[2].lower())]
    if not any(is_known(name) and not is_text(name) for _, name in files if name not in about):
        return files
    if about:
        shown = ", ".join(about[:3]) + (", …" if len(about) > 3 else "")
        _print_once(f"{files[0][0].parent}: {shown}: about the data beside, not data")
    return [(path, name) for path, name in files if name not in about]


def has_files(source: Source) -> bool:
    """Return whether ``source`` is a file, or a folder with a file that matches its pattern."""
    root = Path(source.path)
    files = walk(root)
    return files == [root] or bool(source.files and matching(root, files, source))


def matching(folder: Path, files: list[Path], source: Source) -> list[tuple[Path, str]]:
    """Return the ``files`` in ``folder`` that match ``source.files`` with their relative paths, in order of these.

    Hidden files are skipped; one line on the terminal counts those of a known type.

    Raises:
        UserError: ``source.files`` is not a pattern.
    """
    matches = patterns(source)
    names = sorted((path.relative_to(folder).as_posix(), path) for path in files)
    found = [(path, name) for name, path in names if matches(name)]
    hidden = [name for _, name in found if _hidden(name)]
    if shown := [name for name in hidden if is_known(name)]:
        _print_once(f"{source.path}: {len(shown):,} hidden files skipped ({shown[0]}). Rename them to use them.")
    return [(path, name) for path, name in found if not _hidden(name)]


def patterns(source: Source) -> Callable[[str], bool]:
    """Return a function that tests whether a file's relative path matches ``source.files``.

    `**` is any number of folders; `*`, `?` and `[ab]` stand for characters of a name, `{a,b}` for `a` or `b`.

    Raises:
        UserError: it is not a pattern.
    """
    written = [one.split("/") for one in _braces(source.files)]
    odd = any(part in ("", ".", "..") or ("**" in part and part != "**") for one in written for part in one)
    if odd or len(written) == MOST_PATTERNS:
        raise UserError(
            f"{source.path}: files: {shorten(repr(source.files))} is not a pattern of relative paths, such as *.jsonl "
            "or **/*.{jsonl,parquet}. Change it in params.yaml."
        )
    return lambda name: any(_match(name.split("/"), one) for one in written)


def _braces(pattern: str) -> list[str]:
    """Expand the braces of a pattern as shells do: a{b,c} is ab and ac. Stops at MOST_PATTERNS."""
    written: list[str] = []
    rest = [pattern]
    while rest and len(written) < MOST_PATTERNS:
        one = rest.pop()
        if inner := re.search(r"\{([^{}]*,[^{}]*)\}", one):
            rest += [one[: inner.start()] + choice + one[inner.end() :] for choice in inner[1].split(",")]
        else:
            written.append(one)
    return written


def _match(names: list[str], pattern: list[str]) -> bool:
    """Return whether the parts of a path match a pattern's; ``places`` are the parts that may come next."""
    places = {0}
    for name in [*names, None]:
        for k, part in enumerate(pattern):
            if k in places and part == "**":
                places.add(k + 1)
        if name is None:
            return len(pattern) in places
        inner = [k for k in places if k < len(pattern)]
        places = {
            k if pattern[k] == "**" else k + 1 for k in inner if pattern[k] == "**" or fnmatchcase(name, pattern[k])
        }
    return False


def _hidden(name: str) -> bool:
    """Return whether a file is hidden, or is DVC's record of a file beside it."""
    return name.endswith(".dvc") or any(part.startswith(".") for part in name.split("/"))


@functools.cache
def _print_once(line: str) -> None:
    print(line, flush=True)
