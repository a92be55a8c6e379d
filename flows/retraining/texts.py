"""Format a retrain's texts: the gate's table, the promotion's commit message, a failure's last line."""

from collections.abc import Sequence

from flows.console import RESUME
from flows.retraining.gate import Decision

NOTHING_NEW = "Nothing new: no new data, every stage is up to date, nothing was committed."


def retrain_failure(text: str) -> str:
    """Return :func:`flows.console.failure_text` with the command that resumes a retrain: not in the checkout."""
    lines = [line for line in text.splitlines() if not line.startswith(RESUME)]
    return "\n".join([*lines, "`make retrain` resumes from the finished stages."])


def gate_table(decision: Decision) -> str:
    """Return a Markdown table with a row for each metric that the gate compared; empty for a first model."""
    if not decision.comparisons:
        return ""
    rows = [
        f"| {c.metric} | {_figure(c.before)} | {_figure(c.after)} | "
        + (c.problem or f"{c.after - c.before:+.4g} ± {c.stderr:.2g}")
        + f" | {c.examples} |"
        for c in decision.comparisons
    ]
    return "\n".join(["| metric | champion | new | difference | examples |", "|---|---|---|---|---|", *rows])


def comparison(before: dict[str, float], after: dict[str, float]) -> str:
    """Return a Markdown table with a row for each figure of the champion and the new model."""
    names = list(dict.fromkeys([*after, *before]))
    rows = [f"| {n} | {_figure(before.get(n))} | {_figure(after.get(n))} |" for n in names]
    return "\n".join(["| figure | champion | new |", "|---|---|---|", *rows])


def promotion_message(
    title: str, arrivals: Sequence[str], before: dict[str, float], after: dict[str, float], version: str, why: str = ""
) -> str:
    """Return the message of the commit of a promotion.

    It has the decision, the new files with their hashes, the figures before and after, and the new champion's version
    as a trailer.
    """
    figures = [f"  {name}  {_figure(before.get(name))} → {_figure(value)}" for name, value in after.items()]
    parts = [title, why, "\n".join(["New data:", *(f"  {line}" for line in arrivals)]) if arrivals else ""]
    parts += ["\n".join(["Figures, champion before → now:", *figures]) if figures else "", f"Champion: {version}"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
