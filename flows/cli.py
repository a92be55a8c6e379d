"""The commands of ``python -m flows.*`` but serve: arguments, exit codes, errors."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flows import interrupts
from flows.supervise import GRACE_SECONDS

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

INTERRUPTED = interrupts.EXIT
REFUSED = 3  # by the gate
BUSY = 75  # EX_TEMPFAIL of sysexits.h: try again later


def main(argv: list[str] | None = None) -> int:
    """Run the pipeline. Exit code: 0 up to date, 1 failed or nothing could be run, 130 interrupted."""
    args = _arguments(argv)
    return _exit_code(lambda: _run(Path.cwd(), args.stages, args.force, args.set_param))


def retrain_main(argv: list[str] | None = None) -> int:
    """Retrain.

    Exit code: 0 promoted or nothing new, 3 refused by the gate, 75 another retrain is running, 1 failed,
    130 interrupted.
    """
    args = _retrain_arguments(argv)
    return _exit_code(lambda: _retrain(Path.cwd(), args.data, args.inbox))


def sweep_main(argv: list[str] | None = None) -> int:
    """Sweep.

    Exit code: 0 there is a best trial, 75 this sweep is at work in another process, 1 failed, 130 interrupted.
    """
    args = _sweep_arguments(argv)
    return _exit_code(lambda: _sweep(Path.cwd(), args))


def rollback_main(argv: list[str] | None = None) -> int:
    """Roll back. Exit code: 0 undone, 75 a retrain is at work, 1 there was nothing to undo, or it cannot be."""
    about = "Undo the last promotion: champion is the version before, and the promotion's commit is reverted."
    argparse.ArgumentParser(prog="python -m flows.rollback", description=about).parse_args(argv)
    return _exit_code(_rollback)


def champion_main(argv: list[str] | None = None) -> int:
    """Check the champion out. Exit code: 0 its folder is printed, 1 there is none, or it cannot be fetched."""
    about = "Check the champion's weights out of DVC, into .verdict/champion, and print their folder."
    argparse.ArgumentParser(prog="python -m flows.champion", description=about).parse_args(argv)
    return _exit_code(_champion)


def _exit_code(run: Callable[[], int]) -> int:
    """Return the exit code of ``run``; an interrupt or an error of the user's is printed in one line."""
    with interrupts.raised():
        try:
            return _run_settled(run)
        except BaseException as e:
            if not interrupts.HEARD.is_set() and not isinstance(e, KeyboardInterrupt):
                raise
            print("Interrupted.", file=sys.stderr)
            return INTERRUPTED


def _run_settled(run: Callable[[], int]) -> int:
    """Return the exit code of ``run`` in a settled environment, its errors printed."""
    from flows import alerts
    from flows.console import stop_printing  # and all other imports after it: --help answers at once
    from flows.execution import stage_process
    from flows.retraining.workspace import Busy
    from flows.servers import temporary
    from flows.surroundings import PREFECT_DEFAULTS, settle_surroundings
    from stages.contract import disk
    from stages.contract.errors import UserError

    settle_surroundings(Path.cwd())
    for line in alerts.replaced_settings():
        print(f"warning: {line}", file=sys.stderr)
    for name, value in PREFECT_DEFAULTS.items():  # before Prefect is imported, here or in its server
        os.environ.setdefault(name, value)
    try:
        with interrupts.ending_in_time(GRACE_SECONDS - 5, lambda: stage_process.running() or not temporary.lost()):
            code = run()
        sys.stdout.flush()
        return code
    except UserError as e:
        if interrupts.HEARD.is_set():
            raise
        print("\n".join(f"error: {line}" for line in str(e).splitlines()), file=sys.stderr)
        return 1
    except Busy as e:
        print(e, file=sys.stderr)
        return BUSY
    except BrokenPipeError:
        stop_printing()
        return 1
    except OSError as e:
        if (refused := disk.describe(e)) is None:
            raise
        print(f"error: {refused}", file=sys.stderr)
        return 1


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.pipeline",
        description="Bring the stages of dvc.yaml up to date. A recorded, unchanged stage does not run again.",
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
        description="Take new data in, run the changed stages, promote the model if it is better than the champion.",
        epilog="It works in .verdict/retrain, on the last commit. `gate` in params.yaml defines better.",
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
        epilog="The same command resumes a stopped sweep. dvc exp show lists the trials, dvc exp apply takes one.",
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
    parser.add_argument("--name", default="sweep", help="of the study, to resume it or to start another (sweep)")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _run(root: Path, stages: list[str], force: list[str], overrides: list[str]) -> int:
    from flows import console
    from flows.execution import remote
    from flows.execution.graph import refuse_wrong_data
    from flows.execution.overrides import override
    from flows.execution.waiting import patiently, until_free
    from stages.contract.tracking import pipelines

    def warn(line: str) -> None:
        print(f"warning: {line}", file=sys.stderr, flush=True)

    until_free(root, console.say)  # before params.yaml changes
    with override(root / "params.yaml", overrides):
        restored, planned = patiently(lambda: remote.restore_and_plan(root, stages, force, warn), root, console.say)
    pipelines.close_killed(root)
    console.say(console.plan_table(planned, pipelines.stage_seconds(root), restored))
    if all(stage.fresh for stage in planned) and _configured() is None:
        # Nothing to run and no server to record it: to wait for Prefect's would be most of the time.
        print(f"\n{console.closing_text(root, planned)}")
        return 0
    refuse_wrong_data(planned)  # before Prefect, whose import takes as long
    from flows.execution.pipeline_flow import pipeline

    with _recorded(root), console.stage_lines(max(len(stage.name) for stage in planned)):
        state = pipeline(stages, force, str(root), return_state=True)
    if state.is_completed():
        print(f"\n{state.message}\n\n{console.closing_text(root, planned)}")
        return 0
    print(f"\n{state.message}", file=sys.stderr)
    return INTERRUPTED if state.is_cancelled() else 1


def _retrain(root: Path, data: list[str], inbox: str | None) -> int:
    from flows import alerts, console
    from flows.retraining import branch, texts, workspace
    from stages.contract.errors import UserError

    if _configured() is None:
        source = alerts.AlertSource("retrain", "make retrain", "")
        try:
            with workspace.recorded_at(root), workspace.hold_lock(root, console.say):
                if branch.nothing_to_do(branch.begin_retrain(root, data, inbox, source, console.say)):
                    print(texts.NOTHING_NEW)
                    return 0
        except UserError as e:  # there is no flow yet whose hooks would send the alert
            alerts.send(source, "failed", str(e))
            raise
    from flows.retraining.retrain_flow import retrain

    with _recorded(root), console.stage_lines(len("tokenizer")):
        state = retrain(data, inbox, str(root), return_state=True)
    code = _printed(state)
    return REFUSED if state.name == "Refused" else code


def _sweep(root: Path, args: argparse.Namespace) -> int:
    from flows import console
    from flows.sweeps.sweep_flow import sweep

    options = args.set_param, args.metric, args.maximize, args.trials, args.jobs, args.watch, args.name
    with _recorded(root), console.stage_lines(2):
        state = sweep(*options, str(root), return_state=True)
    return _printed(state)


def _printed(state: "State") -> int:
    """Print a flow's final message and return its exit code."""
    print(f"\n{state.message}", file=sys.stdout if state.is_completed() else sys.stderr)
    if state.is_cancelled():
        return BUSY if state.name == "Busy" else INTERRUPTED
    return int(not state.is_completed())


def _rollback() -> int:
    from flows.retraining.rollback import rollback

    print(rollback(Path.cwd()))
    return 0


def _champion() -> int:
    from flows.retraining.champion import check_out_champion

    print(check_out_champion(Path.cwd()))
    return 0


def _configured() -> str | None:
    """Return the URL of the configured Prefect server's API, if there is one."""
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value()


@contextmanager
def _recorded(root: Path) -> Iterator[None]:
    """Record the block's flow at the configured Prefect server, or at a new one that ends with this process.

    Raises:
        UserError: no server answers, or it refuses the login.
    """
    from flows import console, surroundings
    from flows.servers import connection, temporary

    login = None
    if url := _configured():
        connection.check_server(url)
    else:
        home = surroundings.verdict_folder(root)
        if temporary.makes_database(home):
            console.say("Making Prefect's database, which takes up to half a minute in a new clone.")
        server = temporary.start_server(home)
        url, login = server.url, server.login
    with connection.connected(url, login):
        yield
