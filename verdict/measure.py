"""Measure techniques against their claims, one JSON file a technique; needs neither DVC nor a tracker.

    python -m verdict.measure NAME... --to FOLDER     NAMEs of verdict/claims.yaml; none: all, by importance

What is in FOLDER already is not measured again. Each measurement runs in a process of its own, limited in time, so that
a failure costs one row. It is forked after the imports; where there is a GPU it is spawned, as CUDA needs.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.errors import UserError, one_line, shorten
from stages.contract.files import atomic_write
from verdict.claims import LEVELS, Claim, Rule, Verdict, judge, load_claims
from verdict.machine import describe_machine
from verdict.table import MEASUREMENTS, find_measurement

if TYPE_CHECKING:
    from verdict.measuring.intervals import Measured

LIMIT_SECONDS = 1200.0  # of one measurement
MINUTES = 30.0
USUAL_SECONDS, QUALITY_SECONDS = 20.0, 60.0  # without as much a row is not begun; trainings resume, so few will do
QUIET = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line asks for; return 0, or 1 if a row failed."""
    options = _parser().parse_args(arguments)
    try:
        claims = load_claims()
        options.minutes = options.minutes or minutes_wanted()
        names = options.names or able(claims, hardware_level())
        if unknown := [name for name in names if name not in claims]:
            raise UserError(f"{', '.join(unknown)}: no such technique in verdict/claims.yaml.")
        return measure_all({name: claims[name] for name in names}, options)
    except UserError as e:
        print(e, file=sys.stderr)
        return 1


def able(claims: dict[str, Claim], level: int) -> list[str]:
    """Return the techniques with a measurement that hardware of ``level`` runs, the most important first."""
    rows = [(row.importance, name) for name, row in claims.items() if row.measurement and LEVELS[row.hardware] <= level]
    place = {name: k for k, name in enumerate(claims)}
    return [name for _, name in sorted(rows, key=lambda row: (row[0], place[row[1]]))]


def hardware_level() -> int:
    """Return 0 for a CPU, 1 for a GPU, 2 for several."""
    from torch.cuda import device_count

    return min(2, device_count())


def minutes_wanted() -> float:
    """Return VERDICT_MINUTES, or the default. Raises UserError if it is no number."""
    value = os.environ.get("VERDICT_MINUTES", "")
    try:
        minutes = float(value or MINUTES)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 10**6:
        raise UserError(f"VERDICT_MINUTES is {value!r}; it must be a number of minutes above 0.")
    return minutes


def measure_all(claims: dict[str, Claim], options: argparse.Namespace) -> int:
    """Measure ``claims`` one after another until the minutes are used; return 1 if one failed."""
    os.environ |= QUIET
    method = start_method(hardware_level())
    if method == "fork":
        _import_heavy()
    ends, failed, left = time.monotonic() + 60 * options.minutes, 0, []
    for number, (name, claim) in enumerate(claims.items(), 1):
        if (options.to / f"{name}.json").exists() and not options.force:
            continue
        seconds = ends - time.monotonic()
        result = None
        if seconds >= usual_seconds(claim):
            result = isolated(name, claim, options, min(options.limit, seconds), method)
        if result is None or ("error" in result and time.monotonic() >= ends):  # its finished trainings are kept
            left.append(name)
            continue
        failed |= "error" in result
        print(f"[{number}/{len(claims)}] {summary_line(name, result)}", flush=True)
    if left:
        print(f"{len(left)} rows are left: the minutes are used. Run it again: {', '.join(left)}", flush=True)
    return int(failed)


def usual_seconds(claim: Claim) -> float:
    """Return how much of the minutes must be left to begin a row."""
    return QUALITY_SECONDS if MEASUREMENTS.get(claim.measurement) == "quality" else USUAL_SECONDS


def start_method(level: int) -> str:
    """Return how a measurement's process starts on hardware of ``level``."""
    return "spawn" if level else "fork"


def isolated(
    name: str, claim: Claim, options: argparse.Namespace, limit: float, method: str
) -> dict[str, Any]:  # fmt: skip
    """Measure in a process of its own; write and return the result, or what went wrong."""
    began = time.monotonic()
    path = options.to / f"{name}.json"
    context: Any = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(claim, options, sender))
    process.start()
    sender.close()
    outcome: dict[str, Any] = {"error": f"it took more than {limit:.0f} seconds"}
    try:
        if receiver.poll(limit):
            outcome = receiver.recv()
    except EOFError:
        outcome = {"error": "its process was killed"}
    process.kill()
    process.join()
    result = {"technique": name, "seconds": round(time.monotonic() - began, 1)} | outcome
    if "error" not in result or options.keep_errors:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            part.write_text(json.dumps(result, indent=1, sort_keys=True), encoding="utf-8")
    return result


def summary_line(name: str, result: dict[str, Any]) -> str:
    """Return a row's figure, interval and verdict in one line."""
    if "error" in result:
        return f"{name:<24} not measured: {result['error']} ({result['seconds']} s)"
    return (
        f"{name:<24} {result['verdict']:<10} {result['value']:+.4g} [{result['low']:+.4g}, {result['high']:+.4g}] "
        f"{result['metric']} ({result['seconds']} s)"
    )


def verdict_on(rule: Rule, measured: "Measured") -> Verdict:
    """Return the verdict by the rule; undecided where a rate beyond those tried may be better."""
    if measured.details.get("edges"):
        return "undecided"
    return judge(rule, measured.low, measured.value, measured.high)


def _work(claim: Claim, options: argparse.Namespace, sender: Any) -> None:
    """Measure and send the result as plain values; never raise."""
    try:
        from verdict.measuring.setting import detect_setting

        setting = detect_setting(options.rows, options.to / "trainings", options.tiny)
        measured = find_measurement(claim.measurement)(claim, setting)
        assert claim.rule is not None
        verdict = verdict_on(claim.rule, measured)
        sender.send(asdict(measured) | {"verdict": verdict, "metric": claim.metric, "machine": describe_machine()})
    except UserError as e:
        sender.send({"error": one_line(e)})
    except Exception as e:
        traceback.print_exc()
        sender.send({"error": f"{type(e).__name__}: {shorten(one_line(e), 300)}"})


def _import_heavy() -> None:
    """Import once what every measurement needs; forked processes share it."""
    from transformers import LlamaForCausalLM  # noqa: F401

    import verdict.measuring.quality
    import verdict.measuring.steps  # noqa: F401


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m verdict.measure", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="techniques; none: all, by importance")
    parser.add_argument("--to", type=Path, default=Path("out/verdict"), metavar="FOLDER", help="of the results")
    parser.add_argument("--rows", type=Path, default=Path("out/pack"), metavar="FOLDER", help="with packed rows")
    parser.add_argument("--minutes", type=float, help="to measure in; VERDICT_MINUTES, or 30")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, metavar="SECONDS", help="of one row")
    parser.add_argument("--force", action="store_true", help="measure again what is there")
    parser.add_argument("--keep-errors", action="store_true", help="write what went wrong as a result, too")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test, whose figures mean nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
