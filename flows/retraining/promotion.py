"""Move the champion's alias and the branch together; the next run finishes an interrupted move.

The branch moves first, because a push may be refused; the alias follows. A note on disk records the move until both
are done.
"""

import json
from pathlib import Path

from flows.retraining import git, registry, workspace
from stages.contract.errors import UserError
from stages.contract.tracking import locations
from stages.contract.tracking.spool import write_json


def move(start: workspace.Start, commit: str, version: str, tags: dict[str, dict[str, str]]) -> str:
    """Move the branch to ``commit`` and the champion to ``version``; return one line to print.

    Args:
        tags: version -> its new tags.

    Raises:
        UserError: the branch cannot be moved (nothing has changed then), or the registry does not answer (the next
            run moves the alias).
    """
    write_json(_note(start.repository), {"commit": commit, "version": version, "tags": tags})
    moved = git.advance(start.repository, start.branch, start.remote, commit)
    try:
        settle_promotion(start.repository, commit)
    except UserError as e:
        raise UserError(f"{moved}, and the next run moves the alias {registry.CHAMPION}: {e}") from None
    return moved


def settle_promotion(repository: Path, head: str) -> str | None:
    """Finish a promotion or rollback that was interrupted between branch and alias; return its version.

    ``head`` is the branch's newest commit. Return None without a note, or if ``head`` does not contain the noted
    commit: the branch had not moved yet. Raises UserError if the registry does not answer.
    """
    note = _note(repository)
    if not note.exists():
        return None
    noted = json.loads(note.read_text(encoding="utf-8"))
    happened = git.is_ancestor(repository, noted["commit"], head)
    if happened:
        with registry.registry_client(locations.home(repository)) as client:
            for version, tags in noted["tags"].items():
                registry.mark(client, version, tags)
            registry.point(client, registry.CHAMPION, noted["version"])
    note.unlink()
    return noted["version"] if happened else None


def _note(repository: Path) -> Path:
    return workspace.retrain_folder(repository) / "promotion.json"
