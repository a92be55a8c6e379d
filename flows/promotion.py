"""Champion and branch move together, and what a kill left half-way is finished by the next run.

First the branch, which may be refused (somebody else pushed), then the alias, which is not. Between the two a note
says what is under way.
"""

import json
from pathlib import Path

from flows import git, registry, workspace
from stages.contract import places
from stages.contract.errors import UserError
from stages.contract.spool import write_json


def move(start: workspace.Start, commit: str, version: str, tags: dict[str, dict[str, str]]) -> str:
    """Move the branch to ``commit``, the champion to ``version``, and return what to tell about it.

    Args:
        tags: version -> tags it is marked with.

    Raises:
        UserError: the branch cannot be moved (nothing has changed then), or the registry does not answer (the next
            run moves the alias).
    """
    write_json(_note(start.repository), {"commit": commit, "version": version, "tags": tags})
    told = git.advance(start.repository, start.branch, start.remote, commit)
    try:
        settle(start.repository, commit)
    except UserError as e:
        raise UserError(f"{told}, and the next run moves the alias {registry.CHAMPION}: {e}") from None
    return told


def settle(repository: Path, head: str) -> str | None:
    """Finish the promotion or rollback that was interrupted between branch and alias, and return its version.

    ``head`` is the branch's newest commit. If the noted one is not in it, nothing had happened yet, and None is
    returned, as without a note.

    Raises:
        UserError: the registry does not answer.
    """
    note = _note(repository)
    if not note.exists():
        return None
    noted = json.loads(note.read_text(encoding="utf-8"))
    happened = git.is_ancestor(repository, noted["commit"], head)
    if happened:
        with registry.connected(places.home(repository)) as client:
            for version, tags in noted["tags"].items():
                registry.mark(client, version, tags)
            registry.point(client, registry.CHAMPION, noted["version"])
    note.unlink()
    return noted["version"] if happened else None


def _note(repository: Path) -> Path:
    return workspace.folder(repository) / "promotion.json"
