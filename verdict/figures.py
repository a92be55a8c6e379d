"""Figures of results as a reader sees them: with unit and interval, as advice, and drawn."""

import math
import statistics
from typing import Any

from verdict.claims import Claim
from verdict.drawing import Bar, Point, bars, scatter

LOSSES = ("loss_at_equal_tokens", "loss_at_equal_time")
# metric -> its unit, and the factor from a result's figure to it
UNITS = {
    "speed": ("x", 1.0), "steps": ("x", 1.0), "effort": ("", 1.0),
    "memory": ("%", 100.0), "data_removed": ("%", 100.0), "time_share": ("%", 100.0),
    **dict.fromkeys(LOSSES, ("nats", 1.0)),
}  # fmt: skip
# metric -> (figure without effect, whether more is better); others are no gain or loss by themselves
EFFECTS = {"speed": (1.0, True), "steps": (1.0, True), "memory": (0.0, False), **dict.fromkeys(LOSSES, (0.0, False))}


def shown(result: dict[str, Any]) -> str:
    """Return a figure with its unit, interval, samples and p-value."""
    unit, factor = UNITS[result["metric"]]
    change = result["metric"] in EFFECTS
    value, low, high = (_number(factor * result[name], unit, change) for name in ("value", "low", "high"))
    text = f"{value} {unit}".strip() if unit != "x" else f"{value}x"
    if low != high:
        text += f" [{low}, {high}]"
    if result.get("samples", 1) > 1:
        text += f", n {result['samples']}"
    p = result.get("p")
    return text if p is None else text + (", p < 0.001" if p < 1e-3 else f", p {p:.2g}")


def conditions(result: dict[str, Any]) -> str:
    """Return what a figure of trainings holds for: their size, the steps saved, and a rate that is not yet the best."""
    details, parts = result.get("details", {}), []
    if result.get("metric") in (*LOSSES, "steps") and {"batch", "steps", "parameters"} <= details.keys():
        rows, row_tokens = details["batch"]
        tokens = " and ".join(f"{steps * rows * row_tokens / 1e6:.2g}M" for steps in dict.fromkeys(details["steps"]))
        parts.append(f"trainings of {details['parameters'] / 1e6:.2g}M parameters on {tokens} tokens")
    if "steps_saved" in details:
        value, low, high = (_number(figure, "x") for figure in details["steps_saved"])
        parts.append(f"{value}x [{low}, {high}] fewer steps to the same loss")
    if details.get("edges"):
        rates = " and ".join(f"{rate:.2g}" for rate in details["edges"])
        parts.append(f"undecided, as the best rate, {rates}, is at the edge of those tried")
    return "; ".join(parts)


def advise(claim: Claim, result: dict[str, Any]) -> str:
    """Return keep where the switch is better beyond its interval, drop where it is worse, a dash otherwise."""
    if claim.metric not in EFFECTS or not claim.switch or result.get("details", {}).get("edges"):
        return "-"
    neutral, more = EFFECTS[claim.metric]
    low, high = (result["low"], result["high"]) if more else (-result["high"], -result["low"])
    neutral = neutral if more else -neutral
    return "keep" if low > neutral else "drop" if high < neutral else "-"


def drawings(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the drawings of a machine's results by name: ladder, memory, quality; those that have figures."""
    drawn = {"ladder": _ladder(results), "memory": _memory(results), "quality": _quality(results)}
    return {name: drawing for name, drawing in drawn.items() if drawing}


def _ladder(results: dict[str, dict[str, Any]]) -> str:
    rungs = _details(results, "headline_speed").get("rungs")
    if not rungs:
        return ""
    rows, before, first = [], 0.0, rungs[0]["tokens_per_second"]
    for rung in rungs:
        rate = rung["tokens_per_second"]
        start, end = sorted((before, rate))
        rows.append(Bar(rung["name"], start, end, f"{rate:,.0f} tokens/s, {rate / first:.2f}x", int(rate < before)))
        before = rate
    return bars("The ladder: tokens/s, one technique more on each rung", rows)


def _memory(results: dict[str, dict[str, Any]]) -> str:
    rungs = _details(results, "headline_memory").get("rungs", [])
    rows = [Bar(f"ladder: {rung['name']}", 0.0, rung["peak_bytes"], _bytes(rung["peak_bytes"])) for rung in rungs]
    for name, result in results.items():
        details = _details(results, name)
        peaks = details.get("peak_bytes")
        if result.get("metric") == "memory" and peaks and not details.get("rungs"):
            rows += [Bar(f"{name}, {side}", 0.0, peak, _bytes(peak), number)
                     for number, (side, peak) in enumerate(zip(("without", "with"), peaks, strict=True))]  # fmt: skip
    return bars("Peak memory of a step", [row for row in rows if row.end]) if rows else ""


def _quality(results: dict[str, dict[str, Any]]) -> str:
    points = []
    for name, result in results.items():
        details = _details(results, name)
        if result.get("metric") in (*LOSSES, "steps") and "seconds_per_step" in details and "steps" in details:
            loss = statistics.mean(details["losses"][1])
            if math.isfinite(loss) and loss < 100:  # did not diverge
                points.append(Point(name, details["seconds_per_step"][1] * details["steps"][1], loss))
    return scatter("Quality against time", "seconds of training", "held-out loss, nats a token", points)


def _details(results: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    details: dict[str, Any] = results.get(name, {}).get("details", {})
    return details


def _bytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _number(value: float, unit: str, change: bool = True) -> str:
    """Return a figure without its unit; a change has its sign, a share has none."""
    if not math.isfinite(value):
        return "-∞" if value < 0 else "∞"
    if unit == "%":
        return f"{value:{'+' if change else ''}.1f}" if abs(value) >= 0.05 else f"{value:.2g}"
    return f"{value:+.4f}" if unit == "nats" else f"{value:.3g}"
