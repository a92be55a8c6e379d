"""Whether a new model takes the champion's place: plain numbers in, a decision out.

Both models are scored on the same held-out examples, and compared pair by pair: what makes an example hard is the
same for both and cancels. The difference is the mean of the examples' differences, its standard error theirs over
the square root of their number (Miller 2024, arXiv:2411.00640, section 3.3).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    promote: bool
    reason: str  # one line
    difference: float | None = None  # new minus champion; None: they could not be compared
    stderr: float | None = None


def decide(champion: Mapping[str, float] | None, new: Mapping[str, float], margin: float, errors: float) -> Decision:
    """Promote the new model if it is better by more than ``margin`` and ``errors`` standard errors together.

    Args:
        champion: example -> score, higher is better; None: there is no champion yet.
        new: the same of the new model.
        margin: at least 0, in the scores' unit.
        errors: at least 1, so that a difference within its own standard error never promotes.

    Raises:
        ValueError: ``margin`` or ``errors`` is out of range.
    """
    if not (0 <= margin < math.inf and 1 <= errors < math.inf):
        raise ValueError(f"margin must be at least 0 and errors at least 1, not {margin} and {errors}")
    for name, scores in (("new model", new), ("champion", champion)):
        if scores is not None and (problem := _problem(scores)):
            return Decision(False, f"the {name} has {problem}")
    if champion is None:
        return Decision(True, f"the first model; its {len(new)} scores are finite")
    if champion.keys() != new.keys():
        differ = len(champion.keys() ^ new.keys())
        return Decision(False, f"the two were not measured on the same examples: {differ} are in one set only")
    if len(new) < 2:
        return Decision(False, "a single example carries no standard error")
    difference, stderr = paired(champion, new)
    needed = margin + errors * stderr
    found = f"{difference:+.4g} ± {stderr:.2g} on {len(new)} examples"
    rule = f"more than {needed:.4g} is asked, a margin of {margin:g} and {errors:g} standard errors"
    if not math.isfinite(difference) or not math.isfinite(stderr):
        return Decision(False, "the difference is too large to be computed")
    if difference > needed:
        return Decision(True, f"better: {found}; {rule}", difference, stderr)
    return Decision(False, f"not better by enough: {found}; {rule}", difference, stderr)


def paired(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[float, float]:
    """Mean of the differences after - before over at least two examples, and its standard error; NaN if too large."""
    differences = [after[key] - before[key] for key in sorted(before)]
    try:
        mean = math.fsum(differences) / len(differences)
        squares = math.fsum((value - mean) ** 2 for value in differences)
    except (OverflowError, ValueError):  # of finite scores near the end of float64
        return math.nan, math.nan
    return mean, math.sqrt(squares / (len(differences) - 1) / len(differences))


def _problem(scores: Mapping[str, float]) -> str | None:
    """What makes scores unfit to decide on."""
    if not scores:
        return "no figure"
    bad = [key for key, value in scores.items() if not isinstance(value, int | float) or not math.isfinite(value)]
    return f"{len(bad)} of {len(scores)} figures that are missing or not finite, {bad[0]!r} first" if bad else None
