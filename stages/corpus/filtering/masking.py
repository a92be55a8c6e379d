"""Mask personal data in text by addresses and numbers that are reserved for documentation.

Masked are e-mail addresses, public IPv4 addresses (`ipaddress.IPv4Address.is_global`) and telephone numbers in groups
of digits. Replacements: RFC 2606, RFC 5737, the numbers 555-0100 to 555-0199. Masked text does not change when it is
masked again.
"""

import ipaddress
import re
from collections.abc import Iterable

REPLACEMENTS = {"email": "name@example.com", "ipv4": "192.0.2.1", "phone": "202-555-0100"}
_PATTERNS = {
    "email": re.compile(
        r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-]+(?:\.[A-Za-z0-9_%+-]+)*"
        r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,}(?![A-Za-z0-9-])"
    ),
    "ipv4": re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)", re.ASCII),
    "phone": re.compile(
        r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}(?!\w|[.-]\d)", re.ASCII
    ),
}
_NEEDED = {"email": "@", "ipv4": ".", "phone": ""}  # part of each match: a text without it is not searched


def mask(text: str, kinds: Iterable[str]) -> tuple[str, dict[str, int]]:
    """Replace every match of ``kinds`` (keys of REPLACEMENTS) in ``text``; also return the counts above 0."""
    counts = {}
    for kind in kinds:
        if _NEEDED[kind] in text:
            text, counts[kind] = _replaced(text, kind)
    return text, {kind: count for kind, count in counts.items() if count}


def _replaced(text: str, kind: str) -> tuple[str, int]:
    count = 0

    def replacement(match: re.Match[str]) -> str:
        nonlocal count
        if match[0] == REPLACEMENTS[kind] or (kind == "ipv4" and not _public(match[0])):
            return match[0]
        count += 1
        return REPLACEMENTS[kind]

    return _PATTERNS[kind].sub(replacement, text), count


def _public(address: str) -> bool:
    try:
        return ipaddress.IPv4Address(address).is_global
    except ValueError:
        return False
