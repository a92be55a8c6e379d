"""What a person sees of a night's retraining: Prefect's and MLflow's pages, in a browser."""

import hashlib
import subprocess
import sys

import pytest

from benchmarks.screenshots import PATIENCE, artifact, curves, graph, log_in, model, pipelines, select, window
from stages.contract.tracking.locations import spools
from tests.debian import installed
from tests.flows.conftest import REPOSITORY, answering, wait_for

PIPELINE = """
stages:
  sft:
    cmd: STAGE=sft python toy.py
    deps: [data.txt, toy.py]
    outs: [out/sft, reports/sft]
  dpo:
    cmd: STAGE=dpo python toy.py
    deps: [out/sft, toy.py]
    params: [dpo.beta]
    outs: [out/dpo, reports/dpo]
  eval:
    cmd: STAGE=eval python toy.py
    deps: [out/dpo, toy.py]
    outs: [out/eval, reports/eval]
"""
TOY = """
import json, math, os
from stages.contract import run_stage

def main(run):
    for step in range(50):
        run.log(step, loss=len(run.stage) + 1 / (1 + step))
    if run.stage == "eval":
        run.report({"bits_per_byte": {"dpo": {"overall": 2.5, "books": 2.25, "news": 2.75}}})
        documents = [{"source": "books", "bytes": 1, "dpo": 2.5 * math.log(2)}] * 12
        for name, rows in {"documents": documents, "conversations": [], "pairs": []}.items():
            (run.out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
        (run.reports / "summary.md").write_text("## Bits per byte\\n\\n| dpo |\\n|---|\\n| 2.512 |\\n")
    else:
        (run.out / "config.json").write_text(run.stage)

run_stage(os.environ["STAGE"], main)
"""
COMMIT = "git config user.name T && git config user.email t@t && git add . && git commit -qm 1"


@pytest.fixture
def page(served):
    from playwright.sync_api import expect

    expect.set_options(timeout=1000 * PATIENCE)
    names = "--host-resolver-rules=MAP *.example 127.0.0.1"
    with window(installed("chromium", "chromium"), served.login, names) as page:
        log_in(page, served.prefect, served.login)
        yield page


@pytest.fixture
def night(page, served, make_repo):
    """The id of a run of the deployment `nightly`, by the worker, in whose repository only `sft` was up to date."""
    root = make_repo(PIPELINE, "night")
    for room in ("flows", "stages"):
        (root / room).symlink_to(REPOSITORY / room)
    (root / "toy.py").write_text(TOY)
    (root / ".gitignore").write_text("/out\n/reports\n.verdict/\n__pycache__/\n")
    (root / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    env = served.clients() | {"VERDICT_TRACKING": "on"}
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", "sft"], cwd=root, env=env, check=True)
    subprocess.run(COMMIT, shell=True, cwd=root, check=True)
    wait_for(lambda: not list(spools(root).iterdir()))  # MLflow has them
    variables = {"env": {"VERDICT_TRACKING": "on"}}
    run = served.start("retrain/nightly", parameters={"root": str(root)}, job_variables=variables)
    ended = served.ended(run)
    assert ended["name"] == "Promoted", ended["message"]
    wait_for(lambda: not list(spools(root).iterdir()))
    return run


def test_a_night_as_it_is_seen(page, served, night):
    from playwright.sync_api import expect

    pipeline = pipelines(served.client)[0]

    # Prefect: the graph, box by box; clicking one moves the others
    told = []
    for number in range(3):
        boxes = graph(page, served.prefect, pipeline["id"])
        assert len(boxes) == 3
        name, _, state, *_ = select(page, boxes[number]).inner_text().split("\n")
        told.append((name, state))
    assert sorted(told) == [("dpo", "Completed"), ("eval", "Completed"), ("sft", "Cached")]
    page.get_by_text("Parent Run").locator("..").get_by_role("link").click()
    expect(page).to_have_url(f"{served.prefect}/runs/flow-run/{night}")
    expect(page.get_by_text("Promoted", exact=True).first).to_be_visible()

    # Prefect: the artifacts
    artifact(page, served.prefect, served.client, "gate")
    expect(page.get_by_text("Promoted: version 1 of verdict, bits_per_byte 2.5")).to_be_visible()
    artifact(page, served.prefect, served.client, "summary")
    expect(page.get_by_role("heading", name="Bits per byte")).to_be_visible()
    expect(page.get_by_role("cell", name="2.512")).to_be_visible()
    artifact(page, served.prefect, served.client, "stages")
    rows = page.get_by_role("row")
    expect(rows.filter(has_text="eval")).to_contain_text("Completed")
    expect(rows.filter(has_text="sft")).to_contain_text("Cached")
    made_by = rows.filter(has_text="sft").get_by_role("link").get_attribute("href")

    # MLflow: the run that made the cached result, before the night, and its data
    page.goto(made_by)
    md5 = hashlib.md5(b"a\nb\n").hexdigest()
    expect(page.get_by_text(f"data.txt ({md5})")).to_be_visible()
    expect(page.get_by_role("link", name="pipeline dvc-")).to_be_visible()

    # MLflow: the night's runs, one below the other, their curves, and what was cached
    curves(page, served.mlflow, pipeline["name"], "^loss$")
    for stage in ("dpo", "eval"):
        expect(page.get_by_role("row").get_by_role("link", name=stage, exact=True)).to_be_visible()
        expect(page.get_by_text(f"{stage} (loss)")).to_be_visible()
    ways = "lines => lines.map(line => line.getAttribute('d'))"
    drawn = wait_for(lambda: len(d := {*page.eval_on_selector_all("path.js-line", ways)}) == 2 and d)
    assert all(way.count("L") > 10 for way in drawn)
    page.get_by_role("link", name=f"pipeline {pipeline['name']}").click()
    expect(rows.filter(has_text="sft")).to_contain_text("Cached")

    # MLflow: the model
    model(page, served.mlflow, "verdict")
    expect(rows.filter(has_text="Version 1")).to_contain_text("@ challenger")


# What a page can try, logged in as the browser is: each answer it may read, each socket that opens.
ATTACK = """async ([prefect, mlflow]) => {
  const seen = [], bodies = [[prefect + '/api/flows/', {name: 'evil'}],
    [mlflow + '/api/2.0/mlflow/experiments/create', {name: 'evil'}],
    [mlflow + '/ajax-api/2.0/mlflow/experiments/create', {name: 'evil'}]];
  const reads = [prefect + '/api/health', prefect + '/ui-settings', prefect + '/api/csrf-token?client=a',
    mlflow + '/version', mlflow + '/health', mlflow + '/api/2.0/mlflow/experiments/search?max_results=9'];
  const note = (what, promise) => promise.then(a => a.type === 'opaque' || seen.push(what), () => 0);
  for (const url of reads)
    for (const options of [{}, {credentials: 'include'}, {mode: 'no-cors', credentials: 'include'}])
      await note(url, fetch(url, options));
  for (const [url, body] of bodies)
    for (const options of [{}, {mode: 'no-cors'}, {headers: {'Content-Type': 'application/json'}}])
      await note(url, fetch(url, {method: 'POST', credentials: 'include', body: JSON.stringify(body), ...options}));
  for (const path of ['/api/events/in', '/api/events/out', '/api/logs/out', '/api/task_runs/subscriptions/scheduled'])
    await new Promise(done => {
      const socket = new WebSocket(prefect.replace('http', 'ws') + path, 'prefect');
      socket.onopen = () => done(seen.push(path));
      socket.onerror = done;
    });
  for (const [url, body] of bodies) {
    const frame = Object.assign(document.createElement('iframe'), {name: 'f'});
    const how = {action: url, method: 'post', enctype: 'text/plain', target: 'f'};
    const form = Object.assign(document.createElement('form'), how);
    form.append(Object.assign(document.createElement('input'), {name: '{"name": "evil", "x": "', value: '"}'}));
    document.body.append(frame, form);
    const loaded = new Promise(done => frame.onload = done);
    form.submit();
    await loaded;
    frame.remove();
  }
  return seen;
}"""


@pytest.mark.parametrize("place", ["127.0.0.1", "evil.example"])
def test_page_of_another_origin_neither_reads_nor_posts(page, served, place):
    page.goto(served.mlflow)
    here = "fetch('/api/2.0/mlflow/experiments/search?max_results=9').then(answer => answer.status)"
    assert page.evaluate(here) == 200  # so the browser is logged in
    page.context.unroute_all()
    with answering([200], b"<html><body>A page</body></html>") as (port, _):
        page.goto(f"http://{place}:{port}/")
        assert page.evaluate(ATTACK, [served.prefect, served.mlflow]) == []
    assert not [flow for flow in served.api("/flows/filter", {}) if flow["name"] == "evil"]
    page.goto(f"{served.mlflow}/api/2.0/mlflow/experiments/search?max_results=9")
    assert "Default" in page.inner_text("body") and "evil" not in page.inner_text("body")


def test_name_that_leads_here_is_not_answered(page, served):
    page.context.unroute_all()
    for address in (served.prefect, served.mlflow):
        answer = page.goto(address.replace("127.0.0.1", "rebound.example"))
        assert answer.status == 403
        assert page.goto(address.replace("127.0.0.1", "localhost")).status == 200
