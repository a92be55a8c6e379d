"""What every rule removed, and some of it, as a Markdown page: to judge the rules by what they do."""

from collections.abc import Callable
from math import inf

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.arrays import join, strings, truths, values
from stages.corpus.pages import C4_LINES

EXAMPLES = 5  # of each rule
EXCERPT = 200  # characters


def page(heading: str, limits: dict, gone: pa.Table, total: int, show: Callable[[str], str]) -> str:
    """A table of the rules with the share of the documents that each removed, and EXAMPLES documents of each, from the
    least beyond its limit to the most.

    Args:
        limits: ``Limit`` by rule.
        gone: id, source, reason, value, excerpt of what was removed, in order of id.
        total: documents before.
        show: what of a text may be shown.
    """
    rows = {rule: np.flatnonzero(truths(join(pc.equal(gone["reason"], strings([rule])[0])))) for rule in limits}
    lines = [heading, "", "| rule | stays | removed | share |", "| --- | ---: | ---: | ---: |"]
    for rule, limit in limits.items():
        lines.append(f"| {rule} | {_bounds(limit)} | {len(rows[rule]):,} | {len(rows[rule]) / max(1, total):.3%} |")
    measured = values(join(gone["value"]))
    for rule, limit in limits.items():
        if not len(rows[rule]):
            continue
        lines += ["", f"## {rule}: {_bounds(limit)}", ""]
        beyond = np.maximum(limit.low - measured[rows[rule]], measured[rows[rule]] - limit.high)
        ordered = rows[rule][np.argsort(beyond, kind="stable")]
        for at in np.unique(np.linspace(0, len(ordered) - 1, EXAMPLES).round().astype(int)):
            row = gone.slice(ordered[at], 1).to_pylist()[0]
            text = _code(" ".join(show(row["excerpt"]).split())[:EXCERPT])
            lines.append(f"- {row['value']:.6g} in {_code(row['id'])} ({_code(row['source'])}): {text}")
    return "\n".join(lines) + "\n"


def lines_page(lines: np.ndarray, examples: np.ndarray, show: Callable[[str], str]) -> str:
    """The lines that C4's rules took out of documents, as `page` shows these.

    Args:
        lines: int64 (1 + C4_LINES,): how many there were, and how many each rule took.
        examples: str, C4_LINES of them for each part of the documents; "" for none.
    """
    total, *taken = lines.tolist()
    text = ["", "## Lines taken out of documents", "", "| rule | removed | share of lines |", "| --- | ---: | ---: |"]
    text += [f"| {rule} | {n:,} | {n / max(1, total):.3%} |" for rule, n in zip(C4_LINES, taken, strict=True)]
    for k, rule in enumerate(C4_LINES):
        found = examples[k :: len(C4_LINES)]
        found = found[found != ""]
        if len(found):
            at = np.unique(np.linspace(0, len(found) - 1, EXAMPLES).round().astype(int))
            text += ["", f"## {rule}", "", *(f"- {_code(' '.join(show(str(line)).split()))}" for line in found[at])]
    return "\n".join(text) + "\n"


def _bounds(limit) -> str:
    low, high = (f"{bound:,g}" for bound in limit)
    if limit.low == -inf:
        return f"at most {high}"
    return f"{low} and more" if limit.high == inf else f"{low} to {high}"


def _code(text: str) -> str:
    """``text`` as it is, between more backticks than it has in a row."""
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    longest = max(map(len, "".join(c if c == "`" else " " for c in printable).split()), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {printable} {fence}" if longest else f"`{printable or ' '}`"
