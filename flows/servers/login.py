"""The login of a clone's own Prefect and MLflow servers, made once. Not for a team's servers."""

import re
import secrets
from pathlib import Path

from stages.contract.errors import UserError
from stages.contract.files import Locked, atomic_write, locked

USER = "verdict"
FORM = re.compile(rf"{USER}:\S{{32,}}\n")


def login(home: Path) -> str:
    """Return the login, user:password, from the file ``login`` in ``home`` (.verdict/), mode 0600; make it once.

    Raises:
        UserError: the folder cannot be written, or the file belongs to another user.
    """
    path = home / "login"
    try:
        if not _is_valid(path):
            with locked(home / "login.lock", patience=10):
                if not _is_valid(path):  # another process was first
                    _write(path)
        path.chmod(0o600)
        return path.read_text().strip()
    except (OSError, UnicodeError, Locked) as e:
        raise UserError(f"{path} cannot be used: {e}. It keeps the login of this clone's servers.") from None


def _is_valid(path: Path) -> bool:
    return path.exists() and bool(FORM.fullmatch(path.read_text()))  # a power cut may leave half of it


def _write(path: Path) -> None:
    with atomic_write(path) as part:
        part.touch(mode=0o600)
        part.write_text(f"{USER}:{secrets.token_urlsafe(32)}\n")
