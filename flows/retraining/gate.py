"""Decide whether a new model becomes champion: scores of both models in, a decision out.

Both models are scored on the same held-out examples and compared example by example: what makes an example hard is
the same for both and cancels (Miller 2024, arXiv:2411.00640, section 3.3). A difference counts if it is larger than
`gate.errors` standard errors.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from flows.retraining.scores import Scores, figure, gate_metric
from stages.contract.params import Gate
from stages.evaluation.paired import paired_difference


@dataclass(frozen=True)
class Comparison:
    """One metric of the two models. ``problem`` says why they cannot be compared; ``few``: too few examples."""

    metric: str
    examples: int
    before: float  # the champion's figure
    after: float
    difference: float = math.nan  # after - before, positive is better
    stderr: float = math.nan
    problem: str = ""
    few: bool = False

    def exceeds(self, margin: float, errors: float) -> bool:
        """Whether the new model is better by more than ``margin`` and ``errors`` standard errors together."""
        return self.difference > margin + errors * self.stderr

    def falls_short(self, margin: float, errors: float) -> bool:
        """Whether the new model is worse by more than ``margin`` and ``errors`` standard errors together."""
        return -self.difference > margin + errors * self.stderr

    def text(self) -> str:
        """Return "assistant_loss 4.949 → 4.815 (-0.134 ± 0.03 on 40 examples)"."""
        if self.problem:
            return f"{self.metric}: {self.problem}"
        change = gate_metric(self.metric).sign * self.difference
        error = f"{change:+.4g} ± {self.stderr:.2g} on {self.examples} examples"
        return f"{self.metric} {self.before:.4g} → {self.after:.4g} ({error})"


@dataclass(frozen=True)
class Decision:
    """The gate's answer. ``figures`` are those that it names first, in one line."""

    promote: bool
    reason: str  # one line
    figures: str
    comparisons: tuple[Comparison, ...] = ()


def decide(
    champion: Mapping[str, Scores] | None, new: Mapping[str, Scores], gate: Gate, sources: Collection[str] = ()
) -> Decision:
    """Decide by the metrics of ``gate``.

    The new model is refused if a metric is worse than `not_worse_by` allows, or not better by its `better_by`. Without
    a `better_by`, at least one metric must be better beyond its error: one that judges the new data, if there is any.

    Args:
        champion: metric -> scores; None: there is no champion yet.
        new: the same of the new model.
        sources: keys of params.data that new data arrived for.
    """
    if problem := _unusable(new):
        return Decision(False, f"the new model has {problem}", "")
    if champion is None:
        return _first(new)
    wanted, allowed, errors = gate.metrics.better_by, gate.metrics.not_worse_by, gate.errors
    compared = [_compare(name, champion[name], new[name], gate.examples) for name in new]
    measured = [c for c in compared if not c.problem]
    if wanted:
        judges = [c for c in measured if c.metric in wanted]
    else:
        judges = [c for c in measured if set(gate_metric(c.metric).judges) & set(sources)]
    better = [c for c in judges or measured if c.exceeds(wanted.get(c.metric, 0.0), errors)]
    rule = f"beyond {errors:g} standard errors"
    refusals = {
        "cannot be compared": [c for c in compared if c.problem and (not c.few or c.metric in wanted)],
        f"worse {rule}": [c for c in measured if c.falls_short(allowed.get(c.metric, math.inf), errors)],
        f"not better {rule}": [c for c in judges or measured if c not in better] if wanted or not better else [],
    }
    for kind, refused in refusals.items():
        if refused:
            return Decision(False, f"{kind}: {_texts(refused)}", _figures(refused), tuple(compared))
    if not better:
        return Decision(False, f"no metric has {gate.examples} examples: {_texts(compared)}", "", tuple(compared))
    others = [c for c in measured if c not in better]
    reason = f"better {rule}: {_texts(better)}" + (f"; not worse: {_texts(others)}" if others else "")
    return Decision(True, reason, _figures(better), tuple(compared))


def _first(new: Mapping[str, Scores]) -> Decision:
    measured = {name: figure(scores, name) for name, scores in new.items() if scores}
    if not measured:
        return Decision(False, "the new model has no figure", "")
    count = sum(map(len, new.values()))
    figures = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
    return Decision(True, f"the first model; its {count} scores are finite", figures)


def _compare(name: str, champion: Scores, new: Scores, least: int) -> Comparison:
    """Compare one metric; fewer than ``least`` examples of both are no comparison."""
    before, after = figure(champion, name), figure(new, name)
    count = max(len(champion), len(new))
    if problem := _unusable({name: champion}):
        return Comparison(name, count, before, after, problem=f"the champion has {problem}")
    if champion.keys() != new.keys():
        differ = len(champion.keys() ^ new.keys())
        problem = f"the two were not measured on the same examples: {differ} are in one set only"
        return Comparison(name, count, before, after, problem=problem)
    if count < max(least, 2):
        return Comparison(
            name, count, before, after, problem=f"{count} examples are too few, {least} are needed", few=True
        )
    keys = sorted(new)
    # Totals of nats compare across tokenizers, so one model's weights serve both.
    old_totals, totals = (np.array([scores[key].total for key in keys], float) for scores in (champion, new))
    weights = np.array([new[key].weight for key in keys], float)
    with np.errstate(over="ignore", invalid="ignore"):
        difference, stderr = paired_difference(old_totals, totals, weights)
    if not (math.isfinite(difference) and math.isfinite(stderr)):
        return Comparison(name, count, before, after, problem="the difference is too large to be computed")
    return Comparison(name, count, before, after, difference, stderr)


def _unusable(scores: Mapping[str, Scores]) -> str | None:
    """Describe totals that no decision can rest on."""
    totals = [(f"{name} {key}", score.total) for name, by_key in scores.items() for key, score in by_key.items()]
    bad = [key for key, total in totals if not math.isfinite(total)]
    return f"{len(bad)} of {len(totals)} figures that are missing or not finite, {bad[0]!r} first" if bad else None


def _texts(comparisons: Collection[Comparison]) -> str:
    return ", ".join(comparison.text() for comparison in comparisons)


def _figures(comparisons: Collection[Comparison]) -> str:
    return ", ".join(f"{c.metric} {c.before:.4g} → {c.after:.4g}" for c in comparisons)
