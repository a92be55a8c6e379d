"""A stage's record as these tests write it, and its run in MLflow."""

from stages.contract.tracking import shipment, spool, tracker
from stages.contract.tracking.locations import spools

RUN = {
    "stage": "toy", "fingerprint": "f" * 64, "pipeline": "p1", "params": {"seed": "0"},
    "datasets": {"input.txt": "d" * 32}, "tags": {"git.revision": "abc"},
}  # fmt: skip


def finished(home, run=RUN, reports=None, outs=None, seconds=None):
    """Write the spool of a stage that is done."""
    writing = spool.open_spool(spools(home), run)
    for step in range(3):
        writing.log(step, {"loss": 3.0 - step, "bad": float("nan")})
    took = {} if seconds is None else {"stage_seconds": seconds}
    writing.end("FINISHED", {"documents": 7.0} | took, outs or {}, reports)
    return writing


def ship_all(home):
    """Send what can be sent, once; return the client."""
    client = tracker.connect(home)
    for folder in sorted(spools(home).glob("*")):
        if not shipment.dormant(folder):
            shipment.ship(client, folder, home)
    return client


def only_run(client, home, name="toy"):
    """Return the one run of this name."""
    (run,) = client.search_runs([tracker.experiment(client, home)], f"attributes.run_name = '{name}'")
    return run
