"""Remove passwords and tokens from texts before they are written or shown.

Every address and every message of another library goes through `redact` before it reaches a terminal, a file, a
database or a page. Not for deciding who may connect.
"""

import base64
import functools
import logging
import os
import re
from collections.abc import Mapping
from typing import Any, TextIO
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "***"
SHORTEST = 4  # characters; a shorter value is no secret, and hiding it would make words unreadable

# user:password@ after a scheme; the second form is a password with an unquoted slash ("host:80/x@y" has none).
_USER_INFO = re.compile(r"(?<=://)(?:[^\s/?#'\"<>]*|[^\s/?#'\"<>:\[\]]+:(?!\d+[/?#])[^\s'\"<>]*)@")
_WORDS = r"(?:pass(?:word|wd|phrase)?|pwd|token|secret|signature|sig|credential|api_?key|auth(?:_?string)?|access_?key)"
_QUERY = re.compile(rf"([?&;#](?:[\w.-]*[_.-])?{_WORDS}(?:[_.-]?id)?=)[^&\s'\"<>#]+", re.IGNORECASE)
_HEADER = re.compile(r"(\b(?:Basic|Bearer) )[\w+/=.~-]{8,}")
_SECRET_NAME = re.compile(rf"(?!PWD$)(?:(?:^|_){_WORDS}(?:$|_)|SECRET)(?!.*(?:SOCK|PATH|FILE)$)", re.IGNORECASE)
_SECRET_ADDRESS = re.compile("WEBHOOK", re.IGNORECASE)  # whoever has the address may post
_ALERTS = "VERDICT_ALERT_URLS"  # addresses of Apprise, whose tokens stand anywhere, also where a host stands
_TOKEN = re.compile(r"[^\s/:?&=@#.]{8,}")


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return ``text`` without secrets.

    These are the user and password of any URL, secrets in queries and HTTP headers, and the value of any secret setting
    of ``environment``.
    """
    text = _USER_INFO.sub("", text)
    text = _HEADER.sub(rf"\g<1>{HIDDEN}", _QUERY.sub(rf"\g<1>{HIDDEN}", text))
    pattern = _pattern(_values(environment))
    return pattern.sub(HIDDEN, text) if pattern else text


def hide_in_logs(handler: logging.Handler) -> logging.Handler:
    """Make ``handler`` redact each record, its traceback too, and return it."""
    handler.addFilter(_redact_record)
    return handler


class Redacted:
    """A text stream, for example sys.stderr, in front of which everything is redacted; whole lines are best."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _redact_record(record: logging.LogRecord) -> bool:
    """Replace the message of ``record`` by its redacted text; never reject a record."""
    if record.exc_info and not record.exc_text:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    record.exc_text = redact(record.exc_text) if record.exc_text else record.exc_text
    record.msg, record.args = redact(record.getMessage()), None
    return True


def _values(environment: Mapping[str, str]) -> frozenset[str]:
    """Return the secret values of ``environment``: whole settings and the passwords of addresses."""
    values = set()
    for name, value in environment.items():
        if name == _ALERTS:
            values.update(_TOKEN.findall(value))
        elif "://" in value:
            values.update(_in_address(value, whole=bool(_SECRET_ADDRESS.search(name))))
        elif _SECRET_NAME.search(name):
            values |= {value, value.partition(":")[2], base64.b64encode(value.encode()).decode()}
    return frozenset(value for value in values if len(value) >= SHORTEST)


def _in_address(address: str, whole: bool) -> set[str]:
    """Return the secret parts of ``address``: its password, or if ``whole`` all that follows the host."""
    try:
        parts = urlsplit(address)
        password, rest = parts.password, address.partition(parts.netloc)[2] if parts.netloc else ""
    except ValueError:  # no address
        return {address}
    secrets = {password, unquote(password), quote(unquote(password), safe="")} if password else set()
    return secrets | ({rest, rest.rstrip("/").rpartition("/")[2]} if whole else set())


@functools.lru_cache(maxsize=8)
def _pattern(values: frozenset[str]) -> re.Pattern[str] | None:
    """Return a pattern of all ``values``, longest first; part of a longer word is not one of them."""
    longest = sorted(values, key=len, reverse=True)
    return re.compile("|".join(rf"(?<!\w){re.escape(value)}(?!\w)" for value in longest)) if values else None
