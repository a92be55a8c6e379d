"""``python -m flows.pipeline``, ``retrain``, ``rollback`` and ``sweep``: run, and say how it ended."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.lifeline import Lifeline
    from flows.server import Begun

PREFECT_DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",  # the terminal shows the stages' lines instead
}
ON_FIRST_USE = "prefect.flow_engine", "prefect.task_engine", "fastapi.encoders"  # what Prefect imports for a run
INTERRUPTED = 130
REFUSED = 3  # by the gate
BUSY = 75  # EX_TEMPFAIL of sysexits.h: try again later


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 up to date, 1 failed or nothing could be run, 130 interrupted."""
    args = _arguments(argv)
    return _said(lambda: _run(Path.cwd(), args.stages, args.force, args.set_param))


def retrain_main(argv: list[str] | None = None) -> int:
    """Exit code: 0 promoted or nothing new, 3 refused by the gate, 75 another retrain is at work, 1 failed, 130
    interrupted."""
    args = _retrain_arguments(argv)
    return _said(lambda: _retrain(Path.cwd(), args.data, args.inbox))


def sweep_main(argv: list[str] | None = None) -> int:
    """Exit code: 0 there is a best trial, 75 this sweep is at work in another process, 1 failed, 130 interrupted."""
    args = _sweep_arguments(argv)
    return _said(lambda: _sweep(Path.cwd(), args))


def rollback_main(argv: list[str] | None = None) -> int:
    """Exit code: 0 undone, 75 a retrain is at work, 1 there was nothing to undo, or it cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.rollback",
        description="Undo the last promotion: champion is the version before, and the promotion's commit is reverted.",
    )
    parser.parse_args(argv)
    return _said(lambda: _rollback(Path.cwd()))


def _said(run: Callable[[], int]) -> int:
    """The exit code of ``run``, its errors told as a person needs them."""
    from flows.console import stop_printing  # and all other imports after it: --help answers at once
    from flows.workspace import Busy
    from stages.contract.errors import UserError

    for name, value in PREFECT_DEFAULTS.items():  # before Prefect is imported, here or in its server
        os.environ.setdefault(name, value)
    try:
        code = run()
        sys.stdout.flush()
        return code
    except UserError as e:
        print("\n".join(f"error: {line}" for line in str(e).splitlines()), file=sys.stderr)
        return 1
    except Busy as e:
        print(e, file=sys.stderr)
        return BUSY
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        stop_printing()
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


def _retrain_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.retrain",
        description="Take new data in, run what changed, and promote the new model if it is better than the champion.",
        epilog="It works in .verdict/retrain, on what is committed. `gate` in params.yaml says what better is.",
    )
    parser.add_argument(
        "--data", nargs="+", action="extend", default=[], metavar="[SOURCE=]FILE",
        help="new files; SOURCE is a key of `data` in params.yaml (default: pretrain)",
    )  # fmt: skip
    parser.add_argument(
        "--inbox",
        metavar="FOLDER",
        help="where new files arrive, a sub-folder a source (default: $VERDICT_INBOX, inbox)",
    )
    return parser.parse_args(argv)


def _sweep_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.sweep",
        description="Try values of params with Optuna, each in a worktree of its own and kept as a DVC experiment.",
        epilog="What is stopped goes on by the same command. dvc exp show lists the trials, dvc exp apply takes one.",
    )
    parser.add_argument(
        "-S", "--set-param", action="append", required=True, metavar="KEY=VALUES",
        help="LOW..HIGH, LOW..HIGH:log, or ONE,TWO,THREE; KEY as in params.yaml, for example dpo.beta",
    )  # fmt: skip
    parser.add_argument(
        "--metric", required=True, metavar="STAGE.KEY",
        help="a number of reports/STAGE/metrics.json, lower is better: eval.bits_per_byte.dpo.overall",
    )  # fmt: skip
    parser.add_argument("--maximize", action="store_true", help="higher is better")
    parser.add_argument("--trials", type=_positive, metavar="N", help="in all (every point if all are lists, or 20)")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="at once; with GPUs, one each (1)")
    parser.add_argument(
        "--watch", metavar="STAGE.NAME",
        help="stop a trial whose NAME, as its trainer logs it, is worse than the median: pretrain.loss",
    )  # fmt: skip
    parser.add_argument("--name", default="sweep", help="of the study, to go on with it or to begin another (sweep)")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _run(root: Path, stages: list[str], force: list[str], overrides: list[str]) -> int:
    from flows import console, remote, repro, server
    from flows.execution import ahead
    from flows.graph import override, plan
    from stages.contract.tracking import stage_seconds

    with ExitStack() as stack, ExitStack() as starting:
        # A server starts in three seconds, one of which passes here. Most who have one name it in the environment.
        begun = None if os.environ.get("PREFECT_API_URL") else starting.enter_context(server.early())
        with override(root / "params.yaml", overrides):
            restored = remote.restore(root, lambda line: print(f"warning: {line}", file=sys.stderr, flush=True))
            planned = plan(root, stages, force)
        console.say(console.plan_table(planned, stage_seconds(root), restored))
        stale = not all(stage.fresh for stage in planned)
        if stale:
            repro.start(root)
        alone = _configured() is None
        if alone and not stale:
            # Nothing to run and nobody to show it to: waiting for Prefect's server would be most of the time.
            print(f"\n{console.closing_text(root)}")
            return 0
        if not alone:  # a profile names one, whose database may be the same
            starting.close()
        width = max(len(stage.name) for stage in planned)
        show = partial(console.stage_line, width)
        execution = stack.enter_context(ahead(root, planned, restored, show)) if alone else None
        url = _server("flows.pipeline", begun, execution and execution.lifeline)
        from flows.pipeline import pipeline

        run = pipeline.with_options(flow_run_name=execution and execution.source.run)
        with console.stage_lines(width, shown=alone):
            state = _at(url, lambda: run(stages, force, str(root), return_state=True))
    if state.is_completed():
        print(f"\n{state.message}\n\n{console.closing_text(root)}")
        return 0
    print(f"\n{state.message}", file=sys.stderr)
    return INTERRUPTED if state.is_cancelled() else 1


def _retrain(root: Path, data: list[str], inbox: str | None) -> int:
    from flows import alerts, console, start, workspace
    from stages.contract.errors import UserError

    if _configured() is None:
        try:
            with workspace.alone(root), workspace.recorded_at(root):
                if start.nothing_to_do(start.begin(root, data, inbox)):
                    print(console.NOTHING_NEW)
                    return 0
        except UserError as e:  # there is no flow yet that would tell
            alerts.send(alerts.Source("retrain", "make retrain", ""), "failed", str(e))
            raise
    url = _server("flows.retrain")
    from flows.retrain import retrain

    with console.stage_lines(len("tokenizer")):
        state = _at(url, lambda: retrain(data, inbox, str(root), return_state=True))
    print(f"\n{state.message}", file=sys.stdout if state.is_completed() else sys.stderr)
    if state.is_cancelled():
        return BUSY if state.name == "Busy" else INTERRUPTED
    return REFUSED if state.name == "Refused" else int(not state.is_completed())


def _sweep(root: Path, args: argparse.Namespace) -> int:
    url = _server("flows.sweep")
    from flows import console
    from flows.sweep import sweep

    options = args.set_param, args.metric, args.maximize, args.trials, args.jobs, args.watch, args.name
    with console.stage_lines(2):
        state = _at(url, lambda: sweep(*options, str(root), return_state=True))
    print(f"\n{state.message}", file=sys.stdout if state.is_completed() else sys.stderr)
    if state.is_cancelled():
        return BUSY if state.name == "Busy" else INTERRUPTED
    return int(not state.is_completed())


def _rollback(root: Path) -> int:
    from flows.rollback import rollback

    print(rollback(root))
    return 0


def _configured() -> str | None:
    """The URL of the Prefect server that is to hear of this run, if one is configured."""
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value()


def _server(module: str, begun: "Begun | None" = None, lifeline: "Lifeline | None" = None) -> str:
    """The URL of the configured Prefect server, or of the one that ``begun`` or this starts, which lives as long as
    this process.

    Meanwhile the flow's ``module`` is imported, which takes as long, and signals cut the ``lifeline`` of what runs.

    Raises:
        KeyboardInterrupt: they did.
        UserError: no server answers.
    """
    from flows import server
    from stages.contract.errors import UserError

    url = _configured()
    if url is None:
        begun = begun or server.begin()
        with lifeline.heeding_signals() if lifeline else nullcontext():
            for name in (module, *ON_FIRST_USE):
                importlib.import_module(name)
            return server.ready(begun, lifeline and lifeline.interrupted)
    if not server.answers(url, timeout=10):
        raise UserError(
            f"no Prefect server answers at {url}. Start it (prefect server start) or unset PREFECT_API_URL."
        )
    return url


def _at(url: str, run: Callable):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}):
        return run()
