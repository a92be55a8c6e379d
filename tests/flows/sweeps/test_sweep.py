"""Sweeps over a toy trainer whose loss falls to (dpo.beta - 0.3) squared."""

import json
import os
import signal
import subprocess
import sys

import pytest

from flows import alerts, cli
from flows.sweeps import mirror, study
from flows.sweeps.space import Choice, Range, grid, overrides, parse
from flows.sweeps.trial import Ended, Sweep, key, metric
from stages.contract.errors import UserError
from stages.contract.tracking.names import allowed_name
from tests.flows.conftest import PATIENCE, REPOSITORY, alive, edit, wait_for

TOY = """
stages:
  prepare:
    cmd: sh -c 'echo once >> ../../../../prepared; sleep 1; cp data.txt ready.txt'
    deps: [data.txt]
    outs: [ready.txt]
  train:
    cmd: python train.py
    deps: [train.py, ready.txt]
    params: [dpo.beta, sft.epochs]
    outs: [reports/train]
"""
# It says who it is, logs twenty steps, and when it is to be `slow`, takes a second for each.
TRAIN = f"""
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, {str(REPOSITORY)!r})
from ruamel.yaml import YAML
from stages.contract.tracking import locations
from stages.contract.tracking.spool import open_spool

beta = YAML(typ="safe").load(Path("params.yaml").read_text())["dpo"]["beta"]
assert beta != 0.9, "this one fails"
print("threads wait", os.environ.get("OMP_WAIT_POLICY"))
home = Path(os.environ["VERDICT_HOME"])
with (home.parent / "pids").open("a") as f:
    f.write(f"{{os.getpid()}}\\n")
about = {{"stage": "train", "fingerprint": f"{{beta:016.6f}}", "pipeline": os.environ["VERDICT_PIPELINE"]}}
spool = open_spool(locations.spools(home), about)
slow = (home.parent / "slow").exists()
for step in range(20):
    spool.log(step, {{"loss": (beta - 0.3) ** 2 + 1 / (1 + step), "skipped_steps": float(beta == 0.31)}})
    time.sleep(1 if slow else 0.02)
Path("reports/train").mkdir(parents=True)
Path("reports/train/metrics.json").write_text(json.dumps({{"loss": {{"final": (beta - 0.3) ** 2}}}}))
spool.end("FINISHED", {{}}, {{}}, None)
"""
SWEEP = ["--metric", "train.loss.final"]


@pytest.fixture
def toy(make_repo):
    root = make_repo(TOY)
    (root / "train.py").write_text(TRAIN)
    (root / ".gitignore").write_text("/reports\n/ready.txt\n/.verdict\n/.dvc/cache*\n/.dvc/tmp\n/.dvc/config.local\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["add", "-A"], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", "-C", str(root), *arguments], check=True)
    return root


@pytest.fixture
def sweep(toy, api, monkeypatch, capfd):
    """A function that sweeps over the toy with options, and returns the exit code and what it said."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", api)
    monkeypatch.chdir(toy)

    def run(*options):
        code = cli.sweep_main([*SWEEP, *options])
        said = capfd.readouterr()
        return code, said.err + said.out

    with temporary_settings({PREFECT_API_URL: api}):  # Prefect has read the environment before
        yield run


def dvc(root, *arguments):
    ended = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def trials(toy):
    import optuna

    storage = f"sqlite:///{study.sweeps_folder(toy) / 'studies.db'}"
    return optuna.load_study(study_name="sweep", storage=storage).trials


def test_a_space_is_read_as_it_is_meant():
    space = parse(
        ["sft.learning_rate=1e-4..1e-2:log", "sft.epochs=1..3", "dpo.loss=sigmoid,ipo", "dpo.beta=.1,5e-1,1"],
        REPOSITORY / "params.yaml",
    )
    assert list(space.values()) == [
        Range(1e-4, 1e-2, log=True), Range(1, 3), Choice(("sigmoid", "ipo")), Choice((0.1, 0.5, 1))
    ]  # fmt: skip
    assert isinstance(space["sft.epochs"].low, int) and grid(space) is None
    points = grid({key: space[key] for key in ("dpo.loss", "dpo.beta")})
    assert len(points) == 6 and overrides(points[1]) == ["dpo.loss=sigmoid", "dpo.beta=0.5"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dpo.beta", "nothing to try"),
        ("dpo.bet=0.1,0.2", "params.yaml has no key dpo.bet. Did you mean dpo.beta?"),
        ("dpo.beta=0.2..0.1", "LOW must be below HIGH"),
        ("dpo.beta=0..1:log", "above 0 for :log"),
        ("dpo.beta=a..b", "not a range of numbers"),
        ("dpo.beta=0.1,,0.2", "write LOW..HIGH"),
        ("sizing.batch_tokens=1000.5..2000.5", "params.yaml: sizing.batch_tokens"),
        ("sft.batch_tokens=1024.0..4096.0", "params.yaml: sft.batch_tokens"),
        ("sizing.head_dim=32..64", "params.yaml: sizing.head_dim"),
        ("dpo.beta=null,0.1", "params.yaml: dpo.beta"),
        ("dpo.beta=-1..1", "params.yaml: dpo.beta"),
        ("dpo.loss=sigmoid,nonsense", "params.yaml: dpo.loss"),
    ],
)
def test_a_space_that_cannot_be_is_refused(text, said):
    with pytest.raises(UserError) as e:
        parse([text], REPOSITORY / "params.yaml")
    assert said in str(e.value) and "Traceback" not in str(e.value)


def test_type_of_the_parameter_decides_what_is_tried():
    texts = ["sizing.batch_tokens=2048..8192", "sft.epochs=1.0..3.0", "eval.limit=null,10", "dpo.beta=1..2"]
    space = parse(texts, REPOSITORY / "params.yaml")
    assert space["sizing.batch_tokens"] == Range(2048, 8192) and isinstance(space["sizing.batch_tokens"].low, int)
    assert isinstance(space["sft.epochs"].low, float) and isinstance(space["dpo.beta"].low, float)
    assert overrides(grid({"eval.limit": space["eval.limit"]})[0]) == ["eval.limit=null"]


def test_grid_is_tried_once_in_parallel_and_the_best_applied(toy, sweep):
    code, said = sweep("-S", "dpo.beta=0.1,0.25,0.9,0.4", "--jobs", "2")
    assert code == 0, said
    table = said[said.rindex("\ntrial") :].splitlines()
    assert [line.split()[1] for line in table[2:6]] == ["0.25", "0.4", "0.1", "0.9"]
    assert "this one fails" in table[5] and "dvc exp apply sweep-1" in table[-1]
    assert (toy.parent / "prepared").read_text() == "once\n"  # for both that ran at once
    assert "threads wait passive" in said
    shown = json.loads(dvc(toy, "exp", "show", "--json"))
    names = [found["name"] for entry in shown for found in entry["experiments"] or []]
    assert set(names) == {"sweep-0", "sweep-1", "sweep-3"}
    assert subprocess.run(["git", "status", "--porcelain"], cwd=toy, capture_output=True, text=True).stdout == ""
    dvc(toy, "exp", "apply", "sweep-1")
    assert "beta: 0.25" in (toy / "params.yaml").read_text()
    assert json.loads((toy / "reports/train/metrics.json").read_text())["loss"]["final"] == pytest.approx(0.0025)
    subprocess.run(["git", "checkout", "-q", "."], cwd=toy, check=True)
    (toy / "dvc.lock").unlink(missing_ok=True)
    code, again = sweep("-S", "dpo.beta=0.1,0.25,0.9,0.4")  # nothing is left to try
    assert code == 0 and again.splitlines()[-1] == table[-1] and len(trials(toy)) == 4
    assert not list(study.sweeps_folder(toy).glob("sweep-*"))


def test_ranges_are_searched_for_the_stated_number_of_trials(toy, sweep):
    code, said = sweep("-S", "dpo.beta=0.05..0.8", "-S", "sft.epochs=1..2", "--trials", "2")
    assert code == 0 and "threads wait None" in said  # alone
    assert sweep("-S", "dpo.beta=0.05..0.8", "-S", "sft.epochs=1..2", "--trials", "3")[0] == 0
    found = trials(toy)
    assert [t.state.name for t in found] == ["COMPLETE"] * 3 and len({t.params["dpo.beta"] for t in found}) == 3
    code, said = sweep("-S", "dpo.beta=0.05..0.7", "-S", "sft.epochs=1..2")
    assert code == 1 and "has begun with another space" in said and "--name OTHER" in said
    edit(toy / "train.py", "this one fails", "this one fails too")
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qam", "other"], cwd=toy, check=True
    )
    code, said = sweep("-S", "dpo.beta=0.05..0.8", "-S", "sft.epochs=1..2", "--trials", "4")
    assert code == 1 and "train.py changed: new trials would not compare" in said


def test_trial_worse_than_the_median_is_stopped(toy, sweep, monkeypatch, listener):
    options = ["-S", "dpo.beta=0.3,0.31,0.32,0.33,0.8", "--watch", "train.loss"]
    monkeypatch.setenv("VERDICT_ALERT_URLS", listener.url)
    assert sweep(*options, "--trials", "4")[0] == 0
    assert [(a["flow"], a["event"], a["stage"]) for a in listener.alerts] == [("sweep", "loss spike", "train")]
    (toy.parent / "slow").touch()
    code, said = sweep(*options)
    assert code == 0, said
    assert [t.state.name for t in trials(toy)] == ["COMPLETE"] * 4 + ["PRUNED"]
    assert not any(alive(int(pid)) for pid in (toy.parent / "pids").read_text().split())


def test_interrupted_sweep_resumes_and_repeats_running_trials(toy, sweep, api):
    (toy.parent / "slow").touch()
    options = [*SWEEP, "-S", "dpo.beta=0.1,0.2,0.3", "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.sweep", *options], cwd=toy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    pids = toy.parent / "pids"
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == cli.INTERRUPTED and "the same command resumes the sweep" in said
    assert not any("Traceback" in line for line in said.splitlines() if " | " not in line)  # the toy has one
    assert not any(alive(int(pid)) for pid in pids.read_text().split())
    (toy.parent / "slow").unlink()
    assert sweep(*options[2:])[0] == 0
    assert sorted(t.params["dpo.beta"] for t in trials(toy) if t.state.name == "COMPLETE") == [0.1, 0.2, 0.3]


def test_a_study_that_cannot_be_written_ends_the_sweep(toy, sweep, monkeypatch):
    import optuna

    def full(self, key, value):
        raise OSError("no space left on device")

    monkeypatch.setattr(optuna.trial.Trial, "set_user_attr", full)
    code, said = sweep("-S", "dpo.beta=0.1,0.2,0.3", "--jobs", "2")
    assert code == 1 and "no space left on device" in said
    assert not any(alive(int(pid)) for pid in (toy.parent / "pids").read_text().split())


@pytest.mark.parametrize(("stated", "found"), [("0,1", ["0", "1"]), ("-1", []), ("2,-1,3", ["2"]), ("", [])])
def test_gpus_are_those_that_cuda_would_show(monkeypatch, stated, found):
    from flows.sweeps.sweep_flow import gpus

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", stated)
    assert gpus() == found


def test_unknown_metric_and_uncommitted_change_are_refused(toy, sweep):
    code, said = cli.sweep_main(["--metric", "train.los", "-S", "dpo.beta=0.1,0.2"]), ""
    assert code == 1
    assert sweep("-S", "dpo.beta=0.1,0.2")[0] == 0  # nothing was tried, so nothing would not compare
    code, said = sweep("-S", "dpo.beta=0.1,0.2", "--metric", "train.loss")
    assert code == 1 and "has begun with another metric" in said
    code, said = sweep("-S", "dpo.beta=0.1,0.3", "--name", "watched", "--watch", "loss")
    assert code == 1 and "--watch loss: loss is not among the stages" in said and "prepare, train." in said
    code, said = sweep("-S", "dpo.beta=0.1,0.3", "--name", "watched", "--watch", "train.los")
    assert code == 1 and "--watch train.los: train logs loss, skipped_steps." in said
    code, said = sweep("-S", "dpo.beta=0.1,0.2", "--name", "other", "--metric", "nobody.loss")
    assert code == 1 and "no stage 'nobody' in dvc.yaml. Stages: prepare, train." in said
    edit(toy / "train.py", "this one fails", "this one fails too")
    code, said = sweep("-S", "dpo.beta=0.1,0.2", "--name", "third")
    assert code == 1 and "not committed: train.py" in said and "Traceback" not in said


@pytest.mark.parametrize("name", ["../../keep", "a b", "a/b", "-a", "a.lock", "", "a" * 65])
def test_study_name_that_is_no_git_ref_is_refused(tmp_path, name):
    (tmp_path / "keep-0").mkdir()
    with (
        pytest.raises(UserError, match=f"--name {name}"),
        study.open_study(tmp_path, name, "", {"dpo.beta": Choice((0.1,))}, "train.loss.final", False),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["keep-0"]


def test_a_point_of_many_params_has_a_folder_of_its_own():
    sweep = Sweep(REPOSITORY, "a" * 64, "", alerts.AlertSource("", "", ""), "eval.loss")
    point = {f"pretrain.param_{k}": 0.0012345678901234567 for k in range(20)}
    keys = {key(sweep, point), key(sweep, point | {"pretrain.param_19": 0.5}), key(sweep, dict(point))}
    assert len(keys) == 2 and all(len(f"pipeline-{name}".encode()) < 255 for name in keys)


def test_metric_that_is_not_finite_differs_from_an_unknown_one(tmp_path):
    (tmp_path / "reports/eval").mkdir(parents=True)
    (tmp_path / "reports/eval/metrics.json").write_text('{"loss": {"sft": NaN, "dpo": -Infinity, "pretrain": 2}}')
    assert metric(tmp_path, "eval.loss.sft") is metric(tmp_path, "eval.loss.dpo") is None
    assert metric(tmp_path, "eval.loss.pretrain") == 2
    with pytest.raises(UserError, match=r"eval reports eval\.loss\.pretrain"):
        metric(tmp_path, "eval.loss")


def test_trial_killed_while_drawn_is_repeated_as_a_whole(tmp_path):
    space = {"dpo.beta": Choice((0.1, 0.2, 0.3)), "sft.epochs": Choice((1, 2, 3))}
    with study.open_study(tmp_path, "sweep", "", space, "loss", False) as found:
        study.fill(found, space, 9)
        found.ask().suggest_categorical("dpo.beta", (0.1, 0.2, 0.3))
    points = []
    with study.open_study(tmp_path, "sweep", "", space, "loss", False) as found:
        study.fill(found, space, 9)
        while study.tried(found) < 9:
            trial = study.ask(found, space)
            points.append(trial.params)
            study.record(found, trial, Ended("Completed", 1.0))
    assert sorted(map(str, points)) == sorted(map(str, grid(space)))


def test_mlflow_has_one_run_a_trial_and_its_failure_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("VERDICT_TRACKING")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path))
    space, told = {"dpo.beta": Range(0.1, 0.9)}, []
    with study.open_study(tmp_path, "sweep", "", space, "eval.C++ (cs)", False) as found:
        for number in range(3):
            trial = study.ask(found, space)
            trial.report(2.0, 1)
            study.record(found, trial, Ended("Completed", 1.0 * number, "", f"sweep-{number}"))
        with monkeypatch.context() as patch:
            patch.setattr(mirror, "_plots", lambda *_: 1 / 0)
            mirror.mirror_study(tmp_path, "sweep", found, "eval.C++ (cs)", told.append)
        assert len(told) == 1 and "division by zero" in told[0]
        mirror.mirror_study(tmp_path, "sweep", found, "eval.C++ (cs)", told.append)
        mirror.mirror_study(tmp_path, "sweep", found, "eval.C++ (cs)", told.append)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(mirror.EXPERIMENT)
    assert experiment.artifact_location == (tmp_path / "mlruns").as_uri()
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert len(told) == 1 and set(runs) == {"sweep", "sweep-0", "sweep-1", "sweep-2"}
    assert runs["sweep-2"].data.metrics == {allowed_name("eval.C++ (cs)"): 2.0, "watched": 2.0}
    assert runs["sweep-2"].data.params.keys() == {"dpo.beta"} and runs["sweep-2"].info.status == "FINISHED"
    pages = [page.path for page in client.list_artifacts(runs["sweep"].info.run_id)]
    assert pages == ["history.html", "parallel_coordinates.html"]
