"""One report, twice: aligned plain text for a terminal and Markdown for a page."""

import textwrap
from dataclasses import dataclass, field

WIDTH = 100


@dataclass(frozen=True)
class ReportBlock:
    """A title, a table whose first row is its header (may be empty), and sentences below it."""

    title: str
    table: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def text(blocks: list[ReportBlock]) -> str:
    """Aligned columns: the first to the left, the others to the right; sentences are wrapped at WIDTH."""
    return "\n\n".join(_text_block(block) for block in blocks) + "\n"


def markdown(blocks: list[ReportBlock]) -> str:
    """Return the blocks as headings, tables and paragraphs."""
    parts = []
    for block in blocks:
        parts.append(f"## {block.title}")
        if block.table:
            header, *rows = [[cell.replace("|", "\\|") for cell in row] for row in block.table]
            ruler = ["---", *["---:"] * (len(header) - 1)]
            parts.append("\n".join("| " + " | ".join(row) + " |" for row in (header, ruler, *rows)))
        parts += block.notes
    return "\n\n".join(parts) + "\n"


def _text_block(block: ReportBlock) -> str:
    lines = [block.title, "─" * len(block.title)]
    widths = [max(len(cell) for cell in column) for column in zip(*block.table, strict=True)]
    for row in block.table:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join([row[0].ljust(widths[0]), *numbers]).rstrip())
    for note in block.notes:
        lines += textwrap.wrap(note, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)
