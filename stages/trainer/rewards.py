"""Rewards by rule, from 0 to 1: an answer measured against the one that was chosen."""

import re
from collections import Counter
from decimal import Decimal

# A minus behind a digit, a letter or a bracket is taken away from something; a comma divides thousands.
MINUS = "\N{MINUS SIGN}"
NUMBER = re.compile(rf"(?:(?<![\w)\]])[-{MINUS}])?(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?")


def overlap(answer: str, chosen: str) -> float:
    """F1 of the words the two have in common, case ignored (Rajpurkar et al. 2016, arXiv:1606.05250)."""
    found, wanted = _words(answer), _words(chosen)
    common = (found & wanted).total()
    return 2 * common / (found.total() + wanted.total()) if common else 0.0


def number(answer: str, chosen: str) -> float:
    """1 where the last number of both is the same, as GSM8K is judged (Cobbe et al. 2021, arXiv:2110.14168)."""
    wanted = last_number(chosen)
    return float(wanted is not None and last_number(answer) == wanted)


RULES = {"overlap": overlap, "number": number}


def last_number(text: str) -> Decimal | None:
    """The number that ``text`` names last: 1,234.50 is one, and so is -3."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace(MINUS, "-")) if found else None


def _words(text: str) -> Counter:
    return Counter(re.findall(r"\w+", text.lower()))
