"""Names and texts that MLflow and its databases accept, unique for each original."""

import hashlib
import re
import unicodedata

LONGEST = 250  # characters of a name, MLflow's limit
DIGEST = 8  # hexadecimal digits: two of 1,000 names share one with a chance of 1 in 10,000


def allowed_name(name: str) -> str:
    """Return ``name`` if MLflow accepts it, else a readable form of it that ends in a hash of the original.

    MLflow accepts letters, digits, and ``/ _ - . :`` and space, in at most 250 characters, in the form that
    posixpath.normpath returns (mlflow/utils/validation.py).
    """
    parts = [part for part in re.sub(r"[^/\w.\- :]", "_", name).split("/") if part not in ("", ".", "..")]
    cleaned = re.sub(r"^\.\.", "__", "/".join(parts))
    return name if name and cleaned == name and len(name) <= LONGEST else _with_digest(cleaned, name)


def allowed_text(text: str, limit: int) -> str:
    """Return the first ``limit`` characters of ``text`` without NUL and lone surrogates, which databases refuse."""
    return text.encode("utf-8", "replace").decode().replace("\0", "")[:limit]


class Names:
    """The metric names of one run, each given to one original.

    MySQL and SQL Server take names that differ in case or accents for the same: the second of them gets a hash.
    ``taken`` maps what they compare to the original; keep it for a process that resumes the run.
    """

    def __init__(self, taken: dict[str, str]) -> None:
        self.taken = taken

    def allowed(self, name: str) -> str:
        """Return the name under which MLflow gets ``name``."""
        accepted = allowed_name(name)
        return accepted if self.taken.setdefault(_folded(accepted), name) == name else _with_digest(accepted, name)


def _with_digest(cleaned: str, name: str) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST]
    return f"{cleaned[: LONGEST - DIGEST - 1] or 'name'}-{digest}"


def _folded(name: str) -> str:
    """Return ``name`` without case, accents and trailing spaces."""
    letters = unicodedata.normalize("NFKD", name.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).rstrip()
