"""Tell a tracker's refusals from its silence, and explain both in one line, without a password."""

import os
import re
from pathlib import Path

from stages.contract.secrets import redact
from stages.contract.tracking import locations

SHOWN = 300  # characters of another library's message

# Pattern in an error's text -> the message that a person reads instead; {0} is the address.
EXPLANATIONS = (
    (r"Reading Databricks", "MLflow at {0} needs a login for Databricks."),
    (r"NameResolutionError|NewConnectionError|[Cc]onnection refused|[Tt]imed out|[Rr]efused|Max retries exceeded",
     "MLflow at {0} does not answer: {1}."),
    (r"not in a valid JSON format|error code 404|ENDPOINT_NOT_FOUND",
     "No MLflow server answers at {0}, another one does. Correct MLFLOW_TRACKING_URI."),
    (r"out-of-date database schema|Can't locate revision",
     "{0} is of another version of MLflow: {1}. Back it up and run `mlflow db upgrade {0}`, or use that version."),
    (r"not a database|malformed",
     "{0} is damaged. Restore a backup, or move it away and the next run makes a new one."),
    (r"readonly database|unable to open database file", "{0} cannot be written: {1}. Correct its permissions."),
    (r"is full|No space left|quota", "{0} cannot be written, its disk is full. Make room."),
    (r"maintenance mode|unsupported URI|Could not parse",
     "MLFLOW_TRACKING_URI is {0}, which MLflow does not take. Use http://host:5000 or sqlite:///FILE, or unset it."),
)  # fmt: skip


class Refused(Exception):
    """MLflow refuses everything until a person acts. The message says what and how."""


class Gone(Exception):
    """The run was deleted, or its database was."""


def status(error: Exception) -> int:
    """Return the HTTP status of ``error``, 0 if it has none."""
    if stated := re.search(r"error code (\d{3})\b", str(error)):
        return int(stated[1])
    if known := getattr(error, "get_http_status_code", None):  # MLflow's
        return known()
    return getattr(getattr(error, "response", None), "status_code", 0)  # of requests


def is_about_one_value(error: Exception) -> bool:
    """Whether MLflow refuses what was sent, not who sends it: another value may be accepted."""
    code = getattr(error, "error_code", "")
    if code == "INVALID_PARAMETER_VALUE" or status(error) == 413:  # Content Too Large: a batch, or a file
        return True
    return code == "BAD_REQUEST" and bool(re.search("DataError|IntegrityError", str(error)))


def is_refusal(error: Exception) -> bool:
    """Whether the same call will fail until a person acts. 408, 409, 425, 429 and 499 ask to try again."""
    if isinstance(error, Refused | ImportError):
        return True
    if known := status(error):
        return (400 <= known < 500 and known not in (408, 409, 425, 429, 499)) or "database schema" in str(error)
    return type(error).__name__ == "DatabaseError"  # SQLAlchemy's, of a file that is none


def is_silence(error: Exception) -> bool:
    """Whether the tracker itself does not answer, so that no other call will succeed now."""
    return status(error) in (502, 503, 504) or "API request to" in str(error)


def explain_refusal(error: Exception, home: Path) -> str:
    """Return one line: what is wrong with the tracker, and what to do."""
    uri = redact(locations.tracking_uri(home))
    if isinstance(error, Refused):
        return str(error)
    if status(error) in (401, 403):
        return _login(uri, status(error), error)
    for pattern, words in EXPLANATIONS:
        if re.search(pattern, str(error)):
            return words.format(uri, shortened(error).rstrip("."))
    return f"MLflow at {uri}: {type(error).__name__}: {shortened(error)}"


def _login(uri: str, code: int, error: Exception) -> str:
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if "Host header" in str(error) or "DNS rebinding" in str(error):
        return f"MLflow at {uri} does not accept this host name: start it with --allowed-hosts."
    if user:
        what = "refuses the password of" if code == 401 else "gives no permission to"
        return f"MLflow at {uri} {what} {user} ({code}). Correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
    if os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return f"MLflow at {uri} refuses the token ({code}). Correct MLFLOW_TRACKING_TOKEN."
    return (
        f"MLflow at {uri} asks for a login ({code}). Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
        "MLFLOW_TRACKING_TOKEN."
    )


def shortened(error: Exception) -> str:
    """Return the error's message in one line, without secrets: the operating system's words where it quotes them."""
    text = " ".join(redact(str(error)).split())
    if cause := re.search(r"\[Errno -?\d+\] ([^\"')]+)", text):
        return cause[1]
    text = re.sub(r" ?\[SQL: .*| ?\(Background on this error.*", "", text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
