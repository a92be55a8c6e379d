"""Find the new files of the inbox, check them, and move refused ones to a folder, with the reason."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from stages.contract.accounting import Account
from stages.contract.errors import UserError, one_line
from stages.contract.params import Data, Params, Source

SOURCES = tuple(Data.model_fields)
REFUSED = "refused"  # the folder of refused files in the inbox
INCOMPLETE = (".part", ".tmp")


@dataclass(frozen=True)
class Arrival:
    """A new file for a source of params.data. ``inbox``: its folder; None: the command line named the file."""

    source: str
    path: Path
    md5: str
    inbox: Path | None = None

    def refuse(self, reason: str) -> str:
        """Move the file to the inbox's folder of refused files, with a file of the reason; return one line to print.

        A file from the command line stays in its place, and so does one that cannot be moved.
        """
        line = f"{self.path}: {reason}"
        if self.inbox is None:
            return line
        folder = self.inbox / REFUSED / datetime.now(UTC).date().isoformat() / self.path.relative_to(self.inbox).parent
        target = folder / self.path.name
        if target.exists():
            target = folder / f"{self.md5[:8]}-{self.path.name}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.move(self.path, target)
            target.with_name(f"{target.name}.reason.txt").write_text(f"{reason}\n", encoding="utf-8")
        except OSError as e:
            return f"{line} It stays in the inbox: {e.strerror}."
        return f"{line} It is now {target}."


@dataclass(frozen=True)
class Intake:
    """The files that were taken in, and a line for each that was refused."""

    arrivals: list[Arrival] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)  # path and md5 of each file taken in
    refused: list[str] = field(default_factory=list)

    @property
    def sources(self) -> set[str]:
        return {arrival.source for arrival in self.arrivals}


def arrived(files: list[str], inbox: Path | None) -> list[Arrival]:
    """Return the new files of ``files`` and ``inbox``, in order of source and name; of equal files only one.

    A file is given as ``path`` or ``SOURCE=path``; without a source it is text for pretraining. In the inbox the
    source is the sub-folder's name. Skipped are hidden files, and .part and .tmp files: they may be incomplete.

    Raises UserError if there is no such file or inbox.
    """
    arrivals = [_stated(text) for text in files]
    if inbox is not None:
        if not inbox.is_dir():
            raise UserError(f"{inbox}: no such folder. It is where new data arrives (--inbox, VERDICT_INBOX).")
        arrivals += _of_inbox(inbox)
    unique = {(a.source, a.md5): a for a in sorted(arrivals, key=lambda a: (a.source, a.path), reverse=True)}
    return sorted(unique.values(), key=lambda a: (a.source, a.path))


def check(arrival: Arrival, params: Params) -> None:
    """Read the file as the stages will. Raises UserError for a file that they cannot use."""
    if arrival.source not in SOURCES:
        raise UserError(f"no source is called {arrival.source!r}. Folders of the inbox: {', '.join(SOURCES)}.")
    source = getattr(params.data, arrival.source).model_copy(update={"path": str(arrival.path), "files": "**/*"})
    try:
        account = READERS.get(arrival.source, _records)(source)
        account.check(params.max_rejected)
    except UserError as e:
        raise UserError(one_line(e).removeprefix(f"{arrival.path}: ")) from None
    if not account.used and not account.dropped:
        raise UserError(f"{account.line()}. Nothing in it can be used.")


def _documents(source: Source) -> Account:
    """Count the documents piece by piece: a file may be larger than memory."""
    from stages.corpus.reading import documents, formats, rejections, sources

    used, rejected = 0, rejections.Rejections()
    for path, name in sources.source_files(source):
        for piece in formats.format_of(name).pieces(path, name, documents.PIECE, source.fields):
            table, problems = piece.documents()
            used += len(table)
            rejected.extend(problems)
    if not used:
        raise documents.no_documents(source, rejected)
    return rejections.account_of("data.pretrain", "documents", used, rejected)


def _conversations(source: Source) -> Account:
    from stages.corpus.chats.conversations import read_conversations

    return read_conversations(source).account("data.sft", "conversations")


def _pairs(source: Source) -> Account:
    from stages.corpus.chats.conversations import read_preferences

    return read_preferences(source).account("data.preferences", "pairs")


def _records(source: Source) -> Account:
    from stages.corpus.reading.records import read_records
    from stages.corpus.reading.rejections import account_of

    records, rejected = read_records(source)
    return account_of("records", "records", len(records), rejected)


READERS: dict[str, Callable[[Source], Account]] = {
    "pretrain": _documents,
    "validation": _documents,
    "sft": _conversations,
    "preferences": _pairs,
}


def md5_of(path: Path) -> str:
    """Return the md5 of the file ``path``, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _stated(text: str) -> Arrival:
    source, equals, rest = text.partition("=")
    source, path = (source, Path(rest)) if equals and source in SOURCES else ("pretrain", Path(text))
    if not path.is_file():
        raise UserError(f"{path}: no such file. Write FILE or SOURCE=FILE; sources: {', '.join(SOURCES)}.")
    return Arrival(source, path, md5_of(path))


def _of_inbox(inbox: Path) -> Iterator[Arrival]:
    """Yield the inbox's files that are neither hidden, nor incomplete, nor refused; their sub-folder is the source."""
    for path in inbox.rglob("*"):
        *folders, name = path.relative_to(inbox).parts
        hidden = any(part.startswith(".") for part in (*folders, name))
        if path.is_file() and not hidden and path.suffix not in INCOMPLETE and folders[:1] != [REFUSED]:
            yield Arrival(folders[0] if folders else "pretrain", path, md5_of(path), inbox)
