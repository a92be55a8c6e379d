"""Draw bars and points as self-contained SVG, for the page and for Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, LABEL, ROW, TOP = 640, 250, 26, 34
INK, SOFT, COLORS = "#1d2433", "#5b6578", ("#2f6fde", "#d9622b")


@dataclass(frozen=True)
class Bar:
    """A bar from ``start`` to ``end`` with a label before and a figure after it."""

    label: str
    start: float
    end: float
    figure: str
    color: int = 0


@dataclass(frozen=True)
class Point:
    """A named point; lower is better on both axes."""

    label: str
    x: float
    y: float


def bars(title: str, rows: Sequence[Bar]) -> Markup:
    """Return horizontal bars, one below the other, from zero to the longest."""
    longest = max((row.end for row in rows), default=1.0) or 1.0
    scale, parts = (WIDTH - LABEL - 90) / longest, []
    for number, row in enumerate(rows):
        y = TOP + ROW * number
        x, width, color = LABEL + scale * row.start, max(1.0, scale * (row.end - row.start)), COLORS[row.color]
        parts.append(_text(LABEL - 8, y + 14, row.label, "end"))
        parts.append(f'<rect x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="{ROW - 8}" fill="{color}"/>')
        parts.append(_text(x + width + 6, y + 14, row.figure, "start", SOFT))
    return _figure(title, TOP + ROW * len(rows) + 8, parts)


def scatter(title: str, x_label: str, y_label: str, points: Sequence[Point]) -> Markup:
    """Return named points, and a line through those that no other beats on both axes."""
    if not points:
        return Markup("")
    height, left, bottom = 380, 64, 44
    (x_low, x_high), (y_low, y_high) = (_limits([getattr(p, axis) for p in points]) for axis in ("x", "y"))

    def place(point: Point) -> tuple[float, float]:
        x = left + (WIDTH - left - 110) * (point.x - x_low) / (x_high - x_low)
        return x, height - bottom - (height - bottom - TOP) * (point.y - y_low) / (y_high - y_low)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, pareto(points)))
    parts = [f'<polyline points="{line}" fill="none" stroke="{COLORS[1]}" stroke-dasharray="4 3"/>']
    for point in points:
        x, y = place(point)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLORS[0]}"/>')
        parts.append(_text(x + 7, y + 4, point.label))
    ends = ((left, height - bottom + 16, x_low), (WIDTH - 110, height - bottom + 16, x_high))
    parts += [_text(x, y, f"{value:.3g}", "middle", SOFT) for x, y, value in ends]
    parts += [_text(left - 6, y, f"{v:.3g}", "end", SOFT) for y, v in ((height - bottom, y_low), (TOP + 8, y_high))]
    parts.append(
        _text(WIDTH / 2, height - 8, f"{x_label}; up: {y_label}; dashed: the best for its time", "middle", SOFT)
    )
    return _figure(title, height, parts)


def pareto(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats on both axes, from left to right."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, p.y)):
        if not best or point.y < best[-1].y:
            best.append(point)
    return best


def _limits(values: list[float]) -> tuple[float, float]:
    margin = 0.06 * (max(values) - min(values)) or 0.5 * abs(max(values)) or 1.0
    return min(values) - margin, max(values) + margin


def _text(x: float, y: float, text: str, anchor: str = "start", color: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'


def _figure(title: str, height: float, parts: list[str]) -> Markup:
    label = escape(title)
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}" '
        f'font-family="system-ui, sans-serif" font-size="12"><rect width="{WIDTH}" height="{height}" fill="#fff"/>'
        f'<text x="8" y="18" font-size="14" font-weight="bold" fill="{INK}">{label}</text>{"".join(parts)}</svg>\n'
    )
