"""``python -m flows.pipeline``: plan, run, and say how it ended."""

import argparse
import os
import sys
from pathlib import Path

PREFECT_DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",  # the terminal shows the stages' lines instead
}
INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 up to date, 1 failed or nothing could be run, 130 interrupted."""
    args = _arguments(argv)
    from stages.contract.errors import UserError  # and all other imports after it: --help answers at once

    try:
        return _run(Path.cwd(), args.stages, args.force, args.set_param)
    except UserError as e:
        print("\n".join(f"error: {line}" for line in str(e).splitlines()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for one, has seen enough; what is left in the buffer has no reader
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.pipeline",
        description="Bring the stages of dvc.yaml up to date. What is recorded and unchanged is not run again.",
        epilog="PREFECT_API_URL names a Prefect server to record the run; without one a temporary server is used.",
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="only these and what they need (default: all)")
    parser.add_argument(
        "--force", nargs="+", action="extend", default=[], metavar="STAGE", help="run these even if unchanged"
    )
    parser.add_argument(
        "-S",
        "--set-param",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="write this value to params.yaml first, as `dvc exp run -S` does",
    )
    return parser.parse_args(argv)


def _run(root: Path, stages: list[str], force: list[str], overrides: list[str]) -> int:
    from flows import console, server
    from flows.graph import override, plan
    from stages.contract.errors import UserError
    from stages.contract.tracking import stage_seconds

    with override(root / "params.yaml", overrides):
        planned = plan(root, stages, force)
    print(console.plan_table(planned, stage_seconds(root)), flush=True)
    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = PREFECT_API_URL.value()
    if url is None and all(stage.fresh for stage in planned):
        # Nothing to run and nobody to show it to: starting Prefect's server would be most of the time.
        print(f"\n{console.closing_text(root)}")
        return 0
    if url is None:
        url = server.start()
    elif not server.answers(url, timeout=10):
        raise UserError(
            f"no Prefect server answers at {url}. Start it (prefect server start) or unset PREFECT_API_URL."
        )
    from flows.pipeline import pipeline

    console.show_stage_lines(max(len(stage.name) for stage in planned))
    with temporary_settings({PREFECT_API_URL: url}):
        state = pipeline(stages, force, str(root), return_state=True)
    if state.is_completed():
        print(f"\n{state.message}\n\n{console.closing_text(root)}")
        return 0
    print(f"\n{state.message}", file=sys.stderr)
    return INTERRUPTED if state.is_cancelled() else 1
