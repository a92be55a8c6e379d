"""The pipeline as a Prefect flow: one task for each stage of dvc.yaml.

    python -m flows.pipeline [STAGE ...] [--force STAGE ...] [-S KEY=VALUE ...]

As a deployment: entrypoint ``flows/pipeline.py:pipeline``, working directory the repository.
"""

if __name__ == "__main__":  # before Prefect, whose import takes seconds
    import sys

    from flows.cli import main

    sys.exit(main())

from collections.abc import Callable
from pathlib import Path

from prefect import Task, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed, Failed

from flows import alerts, console, remote, repro, server
from flows.execution import AHEAD, Execution
from flows.graph import Stage, plan
from flows.lifeline import Lifeline
from flows.stage import Outcome
from stages.contract import tracking
from stages.contract.errors import UserError


@flow(name="pipeline", persist_result=False, **alerts.HOOKS)
def pipeline(stages: list[str] | None = None, force: list[str] | None = None, root: str = ".") -> State:
    """Bring ``stages`` (all) of the DVC repository at ``root`` and what they depend on up to date.

    Final state: Completed; Failed, naming the failed stages and those not run because of them; Cancelled after
    SIGINT or SIGTERM, with every stage's processes gone.
    """
    if begun := AHEAD.get():  # of these arguments
        return _pipeline(begun)
    folder = Path(root).resolve()
    log = get_run_logger()
    try:
        restored = remote.restore(folder, lambda line: log.warning("%s", line, extra={"stage": "pipeline"}))
        planned = plan(folder, stages or (), force or ())
    except UserError as e:
        return Failed(message=str(e))
    if not all(stage.fresh for stage in planned):
        repro.start(folder)
    key, lifeline = f"{flow_run.name}-{flow_run.id}", Lifeline()
    try:
        return _pipeline(Execution(folder, planned, restored, key, alerts.this_run(), lifeline))
    finally:
        lifeline.close()


def _pipeline(execution: Execution) -> State:
    execution.taken = True
    planned, root = execution.planned, execution.root
    get_run_logger().info("%s", console.plan_table(planned, tracking.stage_seconds(root), execution.restored))
    with execution.lifeline.heeding_signals():
        states = _run_tasks(execution)
    if any(not stage.fresh for stage in planned):
        tracking.close_pipeline(execution.key, {name: state.name for name, state in states.items()}, root)
    outcomes = execution.outcomes.copy()
    _publish(states, outcomes, root)
    if execution.lifeline.interrupted.is_set():
        return Cancelled(message="interrupted; finished stages are kept, and the next run resumes from there")
    if all(state.is_completed() for state in states.values()):
        ran = sum(outcome.state == "Completed" for outcome in outcomes.values())
        return Completed(message=f"Up to date (ran: {ran}, cached: {len(states) - ran})")
    not_run = [name for name, state in states.items() if state.name == "NotReady"]
    # What has neither an outcome nor an excuse failed here, not in the stage.
    lost = {
        name: Outcome("Failed", states[name].message or "") for name in states.keys() - outcomes.keys() - {*not_run}
    }
    return Failed(message=console.failure_text(outcomes | lost, not_run))


def _run_tasks(execution: Execution) -> dict[str, State]:
    """Submit a task for each stage, upstream first, and return the state each ended in."""
    futures = {}
    for stage in execution.planned:
        waits = [futures[name] for name in stage.upstream]
        futures[stage.name] = _task(stage, execution.outcome).submit(wait_for=waits)
    wait(list(futures.values()))
    return {name: future.state for name, future in futures.items()}


def _task(stage: Stage, execute: Callable[[Stage, Callable[[str], None]], Outcome]) -> Task:
    """``execute(stage, emit)`` as a Prefect task that logs the lines and is retried if the stage was preempted."""

    # With a tag it asks for a slot of its resource's concurrency limit. Cores have no limit, a fresh stage must not
    # wait, and on a server of this process's own there is nobody else. Not to ask is worth two seconds: SQLite often
    # answers that it is locked.
    free = stage.fresh or stage.resource == "cpu" or server.temporary(PREFECT_API_URL.value())

    @task(
        name=stage.name,
        task_run_name=stage.name,
        tags=[] if free else [stage.resource],
        retries=stage.retries,
        retry_delay_seconds=1,
        retry_condition_fn=_is_preempted,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def stage_task() -> State:
        log = get_run_logger()
        outcome = execute(stage, lambda line: log.info("%s", line, extra={"stage": stage.name}))
        kind = {"Completed": Completed, "Cached": Completed, "Cancelled": Cancelled}.get(outcome.state, Failed)
        return kind(name=outcome.state, message=outcome.message or f"ran in {outcome.seconds:.1f} s")

    return stage_task


def _is_preempted(task: Task, task_run, state: State) -> bool:
    return state.name == "Preempted"


def _publish(states: dict[str, State], outcomes: dict[str, Outcome], root: Path) -> None:
    """Show the stages, the closing summary and what the filter's rules removed as Prefect artifacts."""
    links = tracking.run_links(root)
    rows = []
    for name, state in states.items():
        seconds = round(outcomes[name].seconds, 1) if name in outcomes else None
        row = {"stage": name, "state": state.name, "seconds": seconds, "message": state.message or ""}
        rows.append(row | {"mlflow run": links.get(name, {}).get("url", "")})
    create_table_artifact(key="stages", table=rows, description="Every stage and the MLflow run that made its result")
    for key, name in (("summary", "eval/summary.md"), ("rules", "filter/rules.md")):
        page = root / "reports" / name
        if page.exists():
            create_markdown_artifact(key=key, markdown=page.read_text(encoding="utf-8"))
