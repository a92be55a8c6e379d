"""Rewards by rule, from 0 to 1: an answer compared with the chosen one."""

import re
import unicodedata
from collections import Counter
from decimal import Decimal

# A minus behind a digit, a letter or a bracket is a subtraction, not a sign; a comma divides thousands.
MINUS = "\N{MINUS SIGN}"
NUMBER = re.compile(rf"(?:(?<![\w)\]])[-{MINUS}])?(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?")


def overlap(answer: str, chosen: str) -> float:
    """Return the F1 of the words that both have in common, case ignored (Rajpurkar et al. 2016, arXiv:1606.05250)."""
    ours, theirs = _words(answer), _words(chosen)
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total()) if common else 0.0


def number(answer: str, chosen: str) -> float:
    """Return 1 where both end in the same number, as GSM8K is judged (Cobbe et al. 2021, arXiv:2110.14168)."""
    wanted = last_number(chosen)
    return float(wanted is not None and last_number(answer) == wanted)


RULES = {"overlap": overlap, "number": number}


def last_number(text: str) -> Decimal | None:
    """Return the last number in ``text``: 1,234.50 is one, and so is -3."""
    numbers = NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "").replace(MINUS, "-")) if numbers else None


def _words(text: str) -> Counter[str]:
    # One form: \w takes no combining mark, so a decomposed letter would end its word.
    return Counter(re.findall(r"\w+", unicodedata.normalize("NFC", text.lower())))
