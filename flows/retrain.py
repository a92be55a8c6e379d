"""Retraining as a Prefect flow: new data in, the pipeline, a gate, and the better model is the champion.

    python -m flows.retrain [--data [SOURCE=]FILE ...] [--inbox FOLDER]

As a deployment: entrypoint ``flows/retrain.py:retrain``, working directory the repository.
"""

if __name__ == "__main__":  # before Prefect, whose import takes seconds
    import sys

    from flows.cli import retrain_main

    sys.exit(retrain_main())

import os
from dataclasses import dataclass
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows import alerts, champion, console, git, promotion, registry, workspace
from flows.gate import Decision, decide
from flows.lifeline import lifeline
from flows.pipeline import pipeline
from flows.scores import FINAL, MEASURE, headline, mean, scores
from flows.start import begin, nothing_to_do
from flows.workspace import Start
from stages.contract import places, shipper
from stages.contract.errors import UserError
from stages.contract.params import Gate, load_params


@dataclass(frozen=True)
class Model:
    """One side of the comparison."""

    scores: dict[str, float]
    figures: dict[str, float]  # the closing table's few


@flow(name="retrain", persist_result=False, **alerts.HOOKS)
def retrain(data: list[str] | None = None, inbox: str | None = None, root: str = ".") -> State:
    """Take new data in, bring the pipeline up to date beside the checkout, and promote the model if it is better.

    Args:
        data: files, each ``path`` or ``SOURCE=path``.
        inbox: the folder new files arrive in, a sub-folder a source; without it VERDICT_INBOX, or `inbox` in root.
        root: the git and DVC repository. Its checkout changes only by a promotion, which moves it forward.

    Final state: Completed, named Promoted, Refused (by the gate; nothing is committed), Recorded (new inputs, the
    same model) or NothingNew; Cancelled, named Busy if another retrain is at work, or interrupted; Failed with a
    message, everything as before and finished stages kept.
    """
    repository = Path(root).resolve()
    try:
        with workspace.alone(repository), workspace.recorded_at(repository):
            return _retrain(begin(repository, data or [], inbox))
    except workspace.Busy as e:
        return Cancelled(name="Busy", message=str(e))
    except KeyboardInterrupt:
        return Cancelled(message="interrupted; nothing was promoted, and the next run goes on from what is finished")
    except UserError as e:
        return Failed(message=str(e))


def _retrain(start: Start) -> State:
    if nothing_to_do(start):
        return Completed(name="NothingNew", message=console.NOTHING_NEW)
    _say("\n".join(["new data:", *start.arrivals]) if start.arrivals else "no new data")
    ran = pipeline(root=str(start.tree), return_state=True)
    if not ran.is_completed():
        if ran.is_cancelled():
            return Cancelled(message=ran.message)
        return Failed(message=console.retrain_failure(ran.message))
    git.stage_results(start.tree)
    with registry.connected(places.home(start.repository)) as client:
        holder = registry.by_alias(client, registry.CHAMPION)
    candidate = git.commit(start.tree, start.base, "retrain: the candidate")
    model = champion.model_hash(_lock(start), f"out/{FINAL}")
    if holder and registry.tag(holder, "model_md5") == model:
        return _record(start, holder)
    gate = load_params(os.path.relpath(start.tree / "params.yaml")).gate
    new = Model(scores(start.tree, gate.metric), headline(start.tree))
    old = _champion(start, candidate, holder, gate) if holder else None
    decision = decide(old and old.scores, new.scores, gate.margin, gate.errors)
    return _conclude(start, gate, holder, model, old, new, decision)


def _champion(start: Start, candidate: str, holder: registry.Version, gate: Gate) -> Model:
    """The champion's side, measured again if it must be."""
    commit, key = registry.tag(holder, "commit"), f"{flow_run.name}-{flow_run.id}"
    tree = workspace.folder(start.repository) / "champion"
    with (
        lifeline() as held,
        alerts.watching(alerts.this_run(), MEASURE, start.repository, key) as hear,
    ):
        try:
            champion.measure(
                start.repository, tree, candidate, commit,
                lambda line: (_say(line), hear(line)), {"VERDICT_PIPELINE": key}, held.end,
            )  # fmt: skip
            return Model(scores(tree, gate.metric), headline(tree))
        except UserError:
            if held.interrupted.is_set():
                raise KeyboardInterrupt from None
            raise
        finally:
            git.remove_worktree(start.repository, tree)


def _record(start: Start, holder: registry.Version) -> State:
    """The champion came out again: what it is made and measured with is committed, if that is new."""
    if not git.staged(start.tree):
        return Completed(name="NothingNew", message=console.NOTHING_NEW)
    workspace.push(start.tree)
    title = f"retrain: the same model, version {holder.number}, from new inputs"
    message = console.promotion_message(title, start.arrivals, {}, {}, holder.number)
    commit = git.commit(start.tree, start.base, message)
    told = promotion.move(start, commit, holder.number, {})
    return Completed(name="Recorded", message=f"The same model as the champion, version {holder.number}; {told}.")


def _conclude(
    start: Start,
    gate: Gate,
    holder: registry.Version | None,
    model: str,
    old: Model | None,
    new: Model,
    decision: Decision,
) -> State:
    """Register the new model, promote it or not, and tell."""
    source = f"dvc://out/{FINAL}?md5={model}"
    tags = {"model_md5": model, "gate": decision.reason} | {k: f"{v:.6g}" for k, v in new.figures.items()}
    data = {path: md5 for path, md5 in champion.inputs(_lock(start)).items() if not path.endswith(".py")}
    tags |= {shipper.allowed_name(f"dvc.{path}"): md5 for path, md5 in data.items()}
    with registry.connected(places.home(start.repository)) as client:
        version = registry.register(client, source, tags)
    if decision.promote and "rolled_back" in version.tags:
        reason = f"version {version.number} is this model, and it was rolled back (its tag rolled_back says so)"
        decision = Decision(False, reason, decision.difference, decision.stderr)
    before, after = mean(old.scores, gate.metric) if old else None, mean(new.scores, gate.metric)
    figures = f"{gate.metric} {after:.4g}" if before is None else f"{gate.metric} {before:.4g} → {after:.4g}"
    outcome = "Promoted" if decision.promote else "Refused"
    table = console.comparison(old.figures if old else {}, new.figures)
    text = f"**{outcome}**: version {version.number} of {registry.name()}, {figures}\n\n{decision.reason}\n\n{table}"
    create_markdown_artifact(key="gate", markdown=text, description="The new model against the champion")
    if not decision.promote:
        kept = f"version {holder.number} stays champion" if holder else "there is no champion"
        told = f"Refused: {figures}; {decision.reason}. Version {version.number} is challenger, {kept}."
        alerts.send(alerts.this_run(), "refused", told)
        return Completed(name="Refused", message=told)
    workspace.push(start.tree)  # before the commit that points to it
    message = console.promotion_message(
        f"retrain: {figures}, version {version.number}",
        start.arrivals, old.figures if old else {}, new.figures, version.number, decision.reason,
    )  # fmt: skip
    commit = git.commit(start.tree, start.base, message)
    previous = holder.number if holder else "none"
    told = promotion.move(start, commit, version.number, {version.number: {"commit": commit, "previous": previous}})
    return Completed(name="Promoted", message=f"Promoted: version {version.number}, {figures}; {told}.")


def _lock(start: Start) -> str:
    return (start.tree / "dvc.lock").read_text(encoding="utf-8")


def _say(text: str) -> None:
    for line in text.splitlines():
        get_run_logger().info("%s", line, extra={"stage": "retrain"})
