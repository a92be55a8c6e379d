"""Draw line charts as inline SVG: they need no script, scale with the page and print."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 260
LEFT, RIGHT, TOP, BOTTOM = 70, 14, 10, 40
TICKS = 5  # of an axis, about
COLORS = 6  # of lines, in page.html
MOST_POINTS = 400  # of a line: more than pixels of a phone


@dataclass(frozen=True)
class Line:
    """Points (x, y) in the order of x; ``dots`` draws the points instead of a line through them."""

    label: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high``, drawn from pixel ``first`` to pixel ``last``."""

    low: float
    high: float
    first: float
    last: float
    log: bool = False

    def pixel(self, value: float) -> float:
        """Return the pixel of ``value``."""
        scale: Callable[[float], float] = math.log10 if self.log else float
        low, high = scale(self.low), scale(self.high)
        return self.first + (self.last - self.first) * (scale(value) - low) / ((high - low) or 1.0)

    def ticks(self) -> list[float]:
        """Return round values inside the axis: decades, or multiples of 1, 2 or 5 times a power of ten."""
        if self.log:
            decades = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            return [10.0**decade for decade in decades] or [self.low]
        rough = (self.high - self.low) / TICKS or 1.0
        power = 10 ** math.floor(math.log10(rough))
        step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - rough))
        count = math.floor(self.high / step + 1e-9) - math.ceil(self.low / step - 1e-9) + 1
        return [step * (math.ceil(self.low / step - 1e-9) + k) for k in range(count)]


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, log_x: bool = False) -> Markup:
    """Return an SVG of ``lines``, with named axes and, for more than one line, a legend.

    Args:
        lines: of finite numbers; one without points is left out.
        x_label: name of x, and its unit.
        y_label: name of y, and its unit.
        log_x: whether the x axis is logarithmic; x is positive then.
    """
    lines = [Line(line.label, _thinned(line.points), line.dots) for line in lines if line.points]
    if not lines:
        return Markup("")
    points = [point for line in lines for point in line.points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    margin = 0.05 * (max(ys) - min(ys)) or 0.5 * abs(max(ys)) or 1.0
    x_axis = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, log_x)
    y_axis = Axis(min(ys) - margin, max(ys) + margin, HEIGHT - BOTTOM, TOP)
    parts = [*_grid(x_axis, y_axis), *_labels(x_label, y_label)]
    parts += [_drawn(number, line, x_axis, y_axis) for number, line in enumerate(lines)]
    parts += _legend(lines) if len(lines) > 1 else []
    label = escape(f"{y_label} over {x_label}")
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>')


def compact(value: float) -> str:
    """Return ``value`` in few characters, as a tick or a cell shows it: 0.001, 2.5, 12,000, 3.2e+09."""
    if value and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most MOST_POINTS of ``points``, evenly spaced, the last among them."""
    step = -(-len(points) // MOST_POINTS)
    return list(points[::-1][::step][::-1])


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    across = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{compact(tick)}</text>'
        for tick in y_axis.ticks()
        for y in (y_axis.pixel(tick),)
    ]
    up = [
        f'<text x="{x_axis.pixel(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{compact(tick)}</text>'
        for tick in x_axis.ticks()
    ]
    return across + up


def _labels(x_label: str, y_label: str) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text class="axis" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
    ]


def _drawn(number: int, line: Line, x_axis: Axis, y_axis: Axis) -> str:
    pixels = [(x_axis.pixel(x), y_axis.pixel(y)) for x, y in line.points]
    if line.dots or len(pixels) == 1:
        return "".join(f'<circle class="dot c{number % COLORS}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in pixels)
    return f'<polyline class="line c{number % COLORS}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)}"/>'


def _legend(lines: Sequence[Line]) -> list[str]:
    return [
        f'<circle class="dot c{number % COLORS}" cx="{WIDTH - RIGHT - 118}" cy="{TOP + 10 + 17 * number}" r="4"/>'
        f'<text x="{WIDTH - RIGHT - 108}" y="{TOP + 14 + 17 * number}">{escape(line.label)}</text>'
        for number, line in enumerate(lines)
    ]
