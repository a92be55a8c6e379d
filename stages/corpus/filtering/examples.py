"""Show what each rule drops, with examples, as Markdown: to judge the rules by their effect."""

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.filtering.c4 import C4_LINES
from stages.corpus.text.arrays import join, strings, truths, values

if TYPE_CHECKING:
    from stages.corpus.filtering.rules import Limit

EXAMPLES = 5  # of each rule
EXCERPT = 200  # characters


def page(heading: str, limits: "dict[str, Limit]", dropped: pa.Table, total: int, show: Callable[[str], str]) -> str:
    """Write a table of the rules with the documents that each dropped, and EXAMPLES of each.

    Examples go from the nearest to the limit to the farthest beyond it.

    Args:
        limits: by rule.
        dropped: id, source, reason, value, excerpt of the dropped documents, in order of id.
        total: documents before.
        show: masks a text.
    """
    rows = {rule: np.flatnonzero(truths(join(pc.equal(dropped["reason"], strings([rule])[0])))) for rule in limits}
    lines = [heading, "", "| rule | stays | removed | share |", "| --- | ---: | ---: | ---: |"]
    for rule, limit in limits.items():
        lines.append(f"| {rule} | {_bounds(limit)} | {len(rows[rule]):,} | {len(rows[rule]) / max(1, total):.3%} |")
    measured = values(join(dropped["value"]))
    for rule, limit in limits.items():
        if not len(rows[rule]):
            continue
        lines += ["", f"## {rule}: {_bounds(limit)}", ""]
        beyond = np.maximum(limit.low - measured[rows[rule]], measured[rows[rule]] - limit.high)
        ordered = rows[rule][np.argsort(beyond, kind="stable")]
        for at in np.unique(np.linspace(0, len(ordered) - 1, EXAMPLES).round().astype(int)):
            row = dropped.slice(ordered[at], 1).to_pylist()[0]
            text = _code(" ".join(show(row["excerpt"]).split())[:EXCERPT])
            lines.append(f"- {row['value']:.6g} in {_code(row['id'])} ({_code(row['source'])}): {text}")
    return "\n".join(lines) + "\n"


def lines_page(lines: np.ndarray, examples: np.ndarray, show: Callable[[str], str]) -> str:
    """Write a table of the lines that C4's rules dropped from documents, with EXAMPLES of each.

    Args:
        lines: int64 (1 + C4_LINES,): all lines, and those that each rule dropped.
        examples: str, C4_LINES of them for each part of the documents; "" for none.
        show: masks a text.
    """
    total, *taken = lines.tolist()
    text = ["", "## Lines dropped from documents", "", "| rule | dropped | share of lines |", "| --- | ---: | ---: |"]
    text += [f"| {rule} | {n:,} | {n / max(1, total):.3%} |" for rule, n in zip(C4_LINES, taken, strict=True)]
    for k, rule in enumerate(C4_LINES):
        of_rule = examples[k :: len(C4_LINES)]
        of_rule = of_rule[of_rule != ""]
        if len(of_rule):
            at = np.unique(np.linspace(0, len(of_rule) - 1, EXAMPLES).round().astype(int))
            text += ["", f"## {rule}", "", *(f"- {_code(' '.join(show(str(line)).split()))}" for line in of_rule[at])]
    return "\n".join(text) + "\n"


def _bounds(limit: "Limit") -> str:
    low, high = (f"{bound:,g}" for bound in limit)
    if limit.low == -inf:
        return f"at most {high}"
    return f"{low} and more" if limit.high == inf else f"{low} to {high}"


def _code(text: str) -> str:
    """Return ``text`` as Markdown code, between more backticks than it has in a row."""
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    longest = max(map(len, "".join(c if c == "`" else " " for c in printable).split()), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {printable} {fence}" if longest else f"`{printable or ' '}`"
