"""The flow as a person starts it. Each run costs Prefect's start, so each test looks at all that one run shows."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from flows import cli
from flows.execution.graph import plan
from flows.planned import Stage
from flows.servers import temporary
from flows.surroundings import PREFECT_DEFAULTS
from tests.flows.conftest import PATIENCE, REPOSITORY, alive, edit, free_port, own_lines, wait_for
from tests.flows.servers.test_temporary import ELSEWHERE

FAILING = """
stages:
  flaky:
    cmd: sh -c 'test -e ../saved && echo resumed > flaky.txt && exit; echo saved a step; touch ../saved; exit 75'
    deps: [data.txt]
    outs: [flaky.txt]
    meta: {retries: 1}
  broken:
    cmd: sh -c 'sleep 1; echo line 3 is empty >&2; echo x >> ../attempts; exit 3'
    deps: [data.txt]
    outs: [broken.txt]
    meta: {retries: 2}
  child:
    cmd: sh -c 'touch ../child-ran; cp broken.txt child.txt'
    deps: [broken.txt]
    outs: [child.txt]
  grandchild:
    cmd: cp child.txt grandchild.txt
    deps: [child.txt]
    outs: [grandchild.txt]
"""
LONG = """
stages:
  long:
    cmd: sh -c 'trap "echo saved a step; exit 75" INT; echo $$ > ../pid; while true; do sleep 0.1; done'
    deps: [data.txt]
    outs: [long.txt]
    meta: {retries: 3}
  after:
    cmd: cp long.txt after.txt
    deps: [long.txt]
    outs: [after.txt]
"""
SLOW_TO_SAVE = """
stages:
  long:
    cmd: sh -c 'test -e ../saved && cp data.txt long.txt && exit; trap "sleep 2; touch ../saved; exit 75" INT TERM;
      echo $$ > ../pid; while true; do sleep 0.1; done'
    deps: [data.txt]
    outs: [long.txt]
"""
WAITING = """
stages:
  one:
    cmd: sh -c 'touch ../started; while [ ! -e ../go ]; do sleep 0.1; done; cp data.txt one.txt'
    deps: [data.txt]
    outs: [one.txt]
  two:
    cmd: cp one.txt two.txt
    deps: [one.txt]
    outs: [two.txt]
"""


@pytest.fixture(autouse=True)
def _prefect_environment(monkeypatch, home):
    monkeypatch.setenv("PREFECT_HOME", str(home))
    for name, value in PREFECT_DEFAULTS.items():  # the command line sets those that are not there
        monkeypatch.setenv(name, value)


def start(root, home, *arguments, **env):
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | env
    return subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline", *arguments],
        cwd=root, env=env | {"PYTHONPATH": str(REPOSITORY), "PREFECT_HOME": str(home)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def flow(root, home, *arguments, **env):
    """Exit code, stdout, stderr of ``python -m flows.pipeline``."""
    process = start(root, home, *arguments, **env)
    out, err = process.communicate(timeout=2 * PATIENCE)
    return process.returncode, out, err


def recorded(api, kind, **filters):
    """The newest runs that Prefect's server has of this kind."""
    body = json.dumps({"sort": "EXPECTED_START_TIME_DESC", "limit": 10, **filters}).encode()
    request = urllib.request.Request(f"{api}/{kind}/filter", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


def task_states(api, root):
    """State name of each task of the newest flow run of the repository at ``root``."""
    newest = next(run for run in recorded(api, "flow_runs") if run["parameters"]["root"] == str(root))
    tasks = recorded(api, "task_runs", flow_runs={"id": {"any_": [newest["id"]]}})
    assert {f"repository:{root.name}"} <= {*newest["tags"]}
    return newest["state"], {task["name"]: task["state"]["name"] for task in tasks}


def test_wrong_preferences_are_refused_before_a_server_starts(make_repo, monkeypatch, capsys):
    root = make_repo("stages: {check: {cmd: cp data.txt copy.txt, deps: [data.txt], outs: [copy.txt]}}")
    for source in ("preferences", "sft"):
        (root / "data" / source).mkdir(parents=True)
        (root / "data" / source / "a.jsonl").write_text('{"left": 1}')
    monkeypatch.chdir(root)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(temporary, "start_server", lambda home: pytest.fail("a server starts"))
    assert cli.main([]) == 1
    sft, preferences = capsys.readouterr().err.splitlines()
    assert sft.startswith("error: data/sft holds nothing") and preferences.startswith("error: data/preferences holds")
    assert not (root / "copy.txt").exists()


def test_changed_stages_run_and_the_rest_is_cached(built, home, api):
    edit(built / "params.yaml", "limit: 100", "limit: 99")
    edit(built / "dvc.yaml", "> upper.txt", "> upper.txt; echo C >> upper.txt")
    code, out, err = flow(built, home, **ELSEWHERE, HOME="/proc")
    assert (code, own_lines(err)) == (0, [])
    assert out.startswith("Plan: 2 of 4 stages to run, 2 cached\n  copy    cached\n")
    assert "\n  upper   run     eval.limit changed, command changed\n" in out
    assert out.index("upper  | done") < out.index("report | >")
    assert "Up to date (ran: 2, cached: 2)" in out
    assert "dvc push" not in out
    assert (built / "report.txt").read_text().endswith("A\nB\nC\n")
    state, tasks = task_states(api, built)  # the lasting server reads the same database
    assert state["type"] == "COMPLETED"
    assert tasks == {"copy": "Cached", "lines": "Cached", "upper": "Completed", "report": "Completed"}


def test_nothing_to_run_and_no_server_to_record_it(built, home):
    code, out, err = flow(built, home)
    assert (code, own_lines(err)) == (0, [])
    assert "Plan: 0 of 4 stages to run, 4 cached" in out


def test_failure_is_named_and_preemption_is_retried(make_repo, home, api, listener):
    root = make_repo(FAILING)
    code, out, err = flow(root, home, PREFECT_API_URL=api, VERDICT_ALERT_URLS=listener.url)
    assert code == 1
    assert "Traceback" not in out + err
    assert "Failed: broken, exited with 3" in err
    assert "\n    line 3 is empty\n" in err
    assert "Not run because of it: child, grandchild" in err
    assert "dvc repro broken" in err
    assert not (root / ".." / "child-ran").exists()
    assert (root / ".." / "attempts").read_text() == "x\n"
    assert (root / "flaky.txt").read_text() == "resumed\n"
    state, tasks = task_states(api, root)
    assert state["type"] == "FAILED"
    assert "Not run because of it: child, grandchild" in state["message"]
    assert tasks["flaky"] == "Completed"
    assert tasks["broken"] == "Failed"
    assert tasks["child"] == tasks["grandchild"] == "NotReady"
    (alert,) = listener.alerts
    assert (alert["flow"], alert["event"], alert["stage"]) == ("pipeline", "failed", "broken")
    assert "    line 3 is empty" in alert["lines"]
    assert alert["url"].startswith(api.removesuffix("/api"))


def test_interrupt_lets_the_stage_save_and_leaves_no_process(make_repo, home, api):
    signals = [signal.SIGINT, signal.SIGTERM]
    roots = [make_repo(LONG, f"{number.name}/toy") for number in signals]
    flows = [start(root, home, PREFECT_API_URL=api) for root in roots]
    files = [root.parent / "pid" for root in roots]
    pids = [int(wait_for(lambda f=file: f.exists() and f.read_text())) for file in files]
    for process, number in zip(flows, signals, strict=True):
        process.send_signal(number)
    for process, pid, root in zip(flows, pids, roots, strict=True):
        out, err = process.communicate(timeout=PATIENCE)
        assert not alive(pid)
        assert process.returncode == cli.INTERRUPTED
        assert "Traceback" not in out + err
        assert "long  | saved a step" in out
        state, tasks = task_states(api, root)
        assert state["type"] == "CANCELLED"
        assert tasks == {"long": "Cancelled", "after": "NotReady"}


def test_after_kill_9_the_next_run_waits_for_the_stage(make_repo, home, api):
    root = make_repo(SLOW_TO_SAVE)
    process = start(root, home, PREFECT_API_URL=api)
    pid = int(wait_for(lambda: (root.parent / "pid").exists() and (root.parent / "pid").read_text()))
    os.kill(pid, signal.SIGSTOP)  # still saving when the next run comes
    process.kill()
    process.communicate()
    (root / ".dvc" / "tmp" / "updater").write_text("torn {")
    process = start(root, home, PREFECT_API_URL=api)
    assert "waiting for process" in process.stdout.readline()
    os.kill(pid, signal.SIGCONT)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, own_lines(err)) == (0, []), out
    assert (root / "long.txt").read_text() == "a\nb\n"


def test_sigterm_to_all_ends_the_flow_without_prefects_server(make_repo, home):
    root = make_repo(SLOW_TO_SAVE)
    process = start(root, home)
    wait_for(lambda: (root.parent / "pid").exists() and (root.parent / "pid").read_text())
    command = wait_for(
        lambda: next((c for c in descendants(process.pid).values() if "flows.servers.door prefect" in c), "")
    )
    port = re.search(r"--port (\d+)", command)[1]
    wait_for(lambda: temporary.server_answers(f"http://127.0.0.1:{port}/api", timeout=5))
    time.sleep(2)  # now the flow's run is there, or about to be
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):  # the child of one that has just ended
            os.kill(pid, signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == cli.INTERRUPTED
    assert "Traceback" not in out + err
    assert (root.parent / "saved").exists()


def test_server_that_cannot_start_is_one_line_before_any_stage(repo, home):
    nowhere = "sqlite+aiosqlite:////nowhere/prefect.db"
    code, out, err = flow(repo, home, PREFECT_API_DATABASE_CONNECTION_URL=nowhere)
    assert code == 1
    advice = "Prefect's temporary server did not start. `dvc repro` works without it."
    reason = "sqlalchemy.exc.OperationalError: .*unable to open database"
    assert re.match(f"error: {re.escape(advice)}\nerror: {reason}", err), err
    assert "Traceback" not in out + err
    assert not (repo / "copy.txt").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_before_prefects_server_answers_is_one_line(make_repo, home, number):
    root = make_repo(LONG)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a database that says nothing
        url = f"postgresql+asyncpg://prefect@127.0.0.1:{silent.getsockname()[1]}/prefect"
        timeout = {"PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "600"}
        process = start(root, home, PREFECT_API_DATABASE_CONNECTION_URL=url, **timeout)
        wait_for(lambda: any("flows.servers.door prefect" in c for c in descendants(process.pid).values()))
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == cli.INTERRUPTED
    assert own_lines(err) == ["Interrupted."]
    assert out.startswith("Plan: 2 of 2 stages to run")


def test_server_killed_and_restarted_during_a_run_loses_nothing(make_repo, home, api):
    root, port = make_repo(WAITING), free_port()
    url = f"http://127.0.0.1:{port}/api"
    with prefect_server(port):
        process = start(root, home, PREFECT_API_URL=url)
        wait_for((root.parent / "started").exists)
    (root.parent / "go").touch()  # the stage ends with nobody to tell
    wait_for((root / "one.txt").exists)
    with prefect_server(port):
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "Up to date (ran: 2, cached: 0)" in out
    state, tasks = task_states(api, root)  # the lasting server reads the same database
    assert state["type"] == "COMPLETED"
    assert tasks == {"one": "Completed", "two": "Completed"}


def descendants(pid):
    """id -> command of the processes that ``pid`` and its children started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    commands = {}
    for child in found - {pid}:
        with contextlib.suppress(OSError):
            commands[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return commands


@contextlib.contextmanager
def prefect_server(port):
    """One that answers; killed in the end."""
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(lambda: temporary.server_answers(f"http://127.0.0.1:{port}/api", timeout=5))
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("params.yaml", "seed: 0", "seed: -1", "error: params.yaml: seed: -1 is not allowed"),
        ("dvc.lock", "schema: '2.0'", "<<<<<<< HEAD\nschema: '2.0'\n=======\n", "error: "),
        ("dvc.yaml", "data.txt]", "absent.txt]", "error: stage copy needs absent.txt, which does not exist."),
    ],
)
def test_input_error_is_one_line_before_anything_runs(repo, monkeypatch, capsys, file, old, new, message):
    (repo / "dvc.lock").write_text("schema: '2.0'\n")
    edit(repo / file, old, new)
    monkeypatch.chdir(repo)
    assert cli.main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert len(err.splitlines()) == 1


def test_only_gpu_stages_on_a_shared_server_ask_for_a_slot(monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.execution.pipeline_flow import _task

    url, stage = "http://127.0.0.1:1/api", Stage("sft", (), ("changed",), resource="gpu")
    with temporary_settings({PREFECT_API_URL: url}):
        assert _task(stage, print).tags == {"gpu"}
        assert _task(Stage("dedup", (), ("changed",)), print).tags == set()
        monkeypatch.setattr(temporary, "is_temporary", lambda asked: asked == url)
        assert _task(stage, print).tags == set()


def test_place_that_cannot_be_written_is_one_line(repo, monkeypatch, capsys):
    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system", ".dvc/tmp/lock")

    monkeypatch.setattr("flows.execution.remote.restore_and_plan", read_only)
    monkeypatch.chdir(repo)
    assert cli.main([]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: .dvc/tmp/lock: Read-only file system (")
    assert line.endswith("Run in a copy that can be written.\n")


def test_without_git_the_line_says_what_to_do(repo, monkeypatch, capsys):
    shutil.rmtree(repo / ".git")
    monkeypatch.chdir(repo)
    assert cli.main([]) == 1
    err = capsys.readouterr().err
    assert "is not a git repository. Clone the repository, or make one here: git init" in err
    assert len(err.splitlines()) == 1


def test_another_folder_than_the_repository_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["-S", "dpo.beta=0.2"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: params.yaml") and len(err.splitlines()) == 1


def test_unreachable_server_is_one_line(repo, monkeypatch, capsys):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.chdir(repo)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        assert cli.main([]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: no Prefect server answers at http://127.0.0.1:1/api.")
    assert len(err.splitlines()) == 1


def test_help_imports_nothing_slow():
    code = "import sys; from flows.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("usage: python -m flows.pipeline")
    assert not {"prefect", "dvc", "pydantic"} & set(run.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("flow", ["pipeline", "retrain"])
def test_deployment_loads_the_flow_without_training_libraries(tmp_path, flow):
    code = (
        "import sys; from prefect.flows import load_flow_from_entrypoint as load\n"
        f"print(load('flows/{flow}.py:{flow}', use_placeholder_flow=False).name); print(*sys.modules)"
    )
    env = os.environ | {"PREFECT_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[0] == flow
    modules = set(run.stdout.splitlines()[-1].split())
    assert not {"torch", "transformers", "trl", "deepspeed", "mlflow"} & modules


@pytest.mark.parametrize("limit", [100, 99], ids=["nothing to run", "something to run"])
def test_a_reader_that_leaves_early_sees_no_traceback(built, home, limit):
    edit(built / "params.yaml", "limit: 100", f"limit: {limit}")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    ended = subprocess.run(
        f"{sys.executable} -m flows.pipeline | head -1",
        shell=True, cwd=built, env=environment | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
    )  # fmt: skip
    assert "Plan:" in ended.stdout
    assert own_lines(ended.stderr) == []
    assert all(stage.fresh for stage in plan(built))


def test_a_server_that_a_profile_names_is_the_only_one(built, api, monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(temporary, "start_server", lambda home: pytest.fail("a second server"))
    edit(built / "params.yaml", "limit: 100", "limit: 99")
    monkeypatch.chdir(built)
    with temporary_settings({PREFECT_API_URL: api}):
        assert cli.main([]) == 0
    assert task_states(api, built)[1]["upper"] == "Completed"
