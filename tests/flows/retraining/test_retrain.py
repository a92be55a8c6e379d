"""Retraining in a temporary git and DVC repository whose toy model is the mean of the numbers it is given."""

import fcntl
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import cli
from flows.retraining import arrivals, git, inbox, registry, workspace
from flows.retraining.branch import resolve_branch
from flows.retraining.rollback import rollback
from flows.retraining.scores import figure, scores
from flows.retraining.workspace import Busy
from stages.contract import UserError
from stages.contract.tracking.locations import spools
from tests.flows.conftest import REPOSITORY, edit, wait_for

PIPELINE = """
stages:
  dpo:
    cmd: python train.py
    deps: ['${data.pretrain.path}', '${data.sft.path}', train.py]
    params: [seed, sft.learning_rate]
    outs: [out/dpo]
  eval:
    cmd: python measure.py
    deps: ['${data.validation.path}', measure.py, out/dpo]
    outs: [out/eval, reports/eval]
"""
# Fine-tuning learns from each conversation, unless it hardly learns at all.
TRAIN = """
import os, pathlib, re, time
if "SLOW" in os.environ:
    pathlib.Path(os.environ["SLOW"]).touch()
    time.sleep(600)
values = [float(x) for path in sorted(pathlib.Path("data/pretrain").glob("*.txt")) for x in path.read_text().split()]
pathlib.Path("out/dpo").mkdir(parents=True)
pathlib.Path("out/dpo/model.txt").write_text(str(sum(values) / len(values)))
rate = float(re.search(r"\\nsft:.*?learning_rate: (\\S+)", pathlib.Path("params.yaml").read_text(), re.S)[1])
chats = sum(len(path.read_text().splitlines()) for path in pathlib.Path("data/sft").glob("*.jsonl"))
pathlib.Path("out/dpo/skill.txt").write_text(str(chats if rate > 1e-4 else 0))
"""
# A line a source: its name, and how much a better model gains on each of its four documents of a byte. Conversations
# get worse below a quality of 0.2. Each measurement leaves a mark in $MEASURED.
MEASURE = """
import json, math, os, pathlib
quality = float(pathlib.Path("out/dpo/model.txt").read_text())
skill = int(pathlib.Path("out/dpo/skill.txt").read_text())
lines = [line.split() for line in pathlib.Path("data/validation.txt").read_text().splitlines()]
bits = {source: 4 - quality * float(gain) for source, gain in lines}
bits["overall"] = sum(bits.values()) / len(bits)
pathlib.Path("out/eval").mkdir(parents=True)
def write(name, rows):
    pathlib.Path(f"out/eval/{name}.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
documents = [(source, 4 - quality * float(gain)) for source, gain in lines for _ in range(4)]
write("documents", [{"source": s, "bytes": 1, "dpo": b * math.log(2)} for s, b in documents])
write("conversations", [{"tokens": 10, "dpo": 40 + i - 0.01 * skill + 99 * (quality < 0.2)} for i in range(12)])
write("pairs", [{"id": "x", "dpo": [-0.5, -1.0]}] * 3)
write("tasks", [])
pathlib.Path("reports/eval").mkdir(parents=True)
pathlib.Path("reports/eval/metrics.json").write_text(json.dumps({"bits_per_byte": {"dpo": bits}}))
pathlib.Path("reports/eval/headline.json").write_text(json.dumps({"bits_per_byte.dpo.overall": bits["overall"]}))
with open(os.environ["MEASURED"], "a") as file:
    file.write(f"{quality}\\n")
"""


def chats(count, name):
    turns = [{"role": role, "content": name} for role in ("user", "assistant")]
    return "".join(json.dumps({"id": f"{name} {i}", "messages": turns}) + "\n" for i in range(count))


NAMED = "git config user.name T && git config user.email t@t"


@pytest.fixture(scope="module")
def _promoted(tmp_path_factory, api):
    """The toy repository after its first retrain."""
    root = tmp_path_factory.mktemp("retrain") / "toy"
    (root / ".dvc").mkdir(parents=True)
    for folder in ("pretrain", "sft"):
        (root / "data" / folder).mkdir(parents=True)
    (root / "data/sft/old.jsonl").write_text(chats(50, "old"))
    (root / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (root / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (root / ".gitignore").write_text("/out\n/reports\n.verdict/\nmlflow.db\nmlruns/\n")
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "train.py").write_text(TRAIN)
    (root / "measure.py").write_text(MEASURE)
    (root / "README.md").write_text("a toy\n")
    (root / "data/pretrain/old.txt").write_text("0.5\n")
    (root / "data/validation.txt").write_text("books 1\nnews 1.1\nweb 0.9\n")
    shutil.copy(REPOSITORY / "params.yaml", root)
    edit(root / "params.yaml", "{path: data/validation, ", "{path: data/validation.txt, ")
    sh(root, f"git init -q -b main && {NAMED} && git add . && git commit -qm 1")
    with pytest.MonkeyPatch.context() as patch:
        _set_environment(patch, root)
        state = run(root, api)
    assert state.name == "Promoted", state.message
    return root


@pytest.fixture
def root(tmp_path, _promoted, monkeypatch):
    """A copy of the repository in which version 1 is champion."""
    root = tmp_path / "toy"
    shutil.copytree(_promoted, root, symlinks=True, ignore=shutil.ignore_patterns("retrain"))
    sh(root, "git worktree prune")
    _set_environment(monkeypatch, root)
    return root


def _set_environment(patch, root):
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    patch.delenv("VERDICT_INBOX", raising=False)
    patch.setenv("VERDICT_TRACKING", "off")
    patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    patch.setenv("MEASURED", str(root.parent / "measured"))


def sh(root, command):
    ended = subprocess.run(command, shell=True, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def run(root, api, *data, **options):
    """The final state of the flow."""
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.retrain import retrain

    # Stopping the heartbeat takes a flow up to a second.
    with temporary_settings({PREFECT_API_URL: api, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        return retrain(list(data), root=str(root), return_state=True, **options)


def commits(root):
    return sh(root, "git log --format=%s").splitlines()


def new_file(root, text, name="new.txt"):
    path = root.parent / name
    path.write_text(text)
    return str(path)


def versions(root):
    """version -> tags, and alias -> version."""
    with registry.registry_client(root) as client:
        found = {str(v.version) for v in client.search_model_versions(f"name = '{registry.name()}'")}
        aliases = client.get_registered_model(registry.name()).aliases
        tags = {version: client.get_model_version(registry.name(), version).tags for version in found}
        return tags, {alias: str(version) for alias, version in aliases.items()}


def measured(root):
    path = root.parent / "measured"
    return path.read_text().split() if path.exists() else []


def test_first_model_is_promoted_and_registered(root):
    tags, aliases = versions(root)
    assert aliases == {"champion": "1", "challenger": "1"}
    assert tags["1"]["commit"] == sh(root, "git rev-parse HEAD")
    assert tags["1"]["previous"] == "none"
    assert tags["1"]["dvc.data/validation.txt"] in (root / "dvc.lock").read_text()
    assert tags["1"]["bits_per_byte.dpo.overall"] == "3.5"
    with registry.registry_client(root) as client:
        source = client.get_model_version(registry.name(), "1").source
    assert source == f"dvc://out/dpo?md5={tags['1']['model_md5']}"
    assert tags["1"]["model_md5"] in (root / "dvc.lock").read_text()
    assert sh(root, "git status --porcelain") == ""
    assert commits(root)[0] == "retrain: bits_per_byte 3.5, assistant_loss 4.5, preferences 1, version 1"


def test_better_data_is_promoted_and_rolled_back(root, api, monkeypatch, capsys):
    state = run(root, api, new_file(root, "1.5\n"))
    assert state.name == "Promoted", state.message
    assert state.message.startswith("Promoted: version 2, bits_per_byte 3.5 → 3; committed on main")
    message = sh(root, "git log -1 --format=%B")
    assert message.startswith(
        "retrain: bits_per_byte 3.5 → 3, version 2\n\nbetter beyond 2 standard errors: bits_per_byte 3.5 → 3 (-0.5 ± "
    )
    assert "data/pretrain/new.txt  md5 " in message
    assert "bits_per_byte.dpo.overall  3.5 → 3" in message
    assert message.endswith("Champion: 2")
    assert sh(root, "git status --porcelain") == ""
    assert sh(root, "git show --stat --format= --name-only HEAD").split() == ["data/pretrain/new.txt", "dvc.lock"]
    assert measured(root) == ["1.0"]  # the champion's figures are those of its own run
    tags, aliases = versions(root)
    assert aliases == {"champion": "2", "challenger": "2"}
    assert (tags["2"]["previous"], tags["2"]["commit"]) == ("1", sh(root, "git rev-parse HEAD"))

    monkeypatch.chdir(root)
    assert cli.champion_main([]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == root / ".verdict/champion/out/dpo" and (folder / "model.txt").read_text() == "1.0"

    told = rollback(root)
    assert told.startswith("Version 1 is champion again, in place of version 2.")
    tags, aliases = versions(root)
    assert aliases["champion"] == "1"
    assert tags["2"]["rolled_back"] == sh(root, "git rev-parse HEAD")
    assert sh(root, "git diff HEAD~2 HEAD") == ""
    assert commits(root)[:2] == ["Roll back to version 1", "retrain: bits_per_byte 3.5 → 3, version 2"]
    with pytest.raises(UserError, match="version 1 is the first champion"):
        rollback(root)

    state = run(root, api, str(root.parent / "new.txt"))  # the nightly run finds the same file again
    assert state.name == "Refused"
    assert "it was rolled back" in state.message
    assert versions(root)[1]["champion"] == "1"


def test_worse_model_is_refused_and_not_trained_again(root, api):
    data = new_file(root, "0.1\n")
    says = "worse beyond 2 standard errors: bits_per_byte 3.5 → 3.7 (+0.2 ± "
    assert_refused(root, run(root, api, data), says)
    assert_refused(root, run(root, api, data), says)
    assert measured(root) == ["0.3"]


def test_model_with_nan_figures_is_refused_with_an_alert(root, api, monkeypatch, listener):
    monkeypatch.setenv("VERDICT_ALERT_URLS", listener.url)
    state = run(root, api, new_file(root, "nan\n"))
    assert_refused(root, state, "the new model has 12 of 27 figures that are missing or not")
    (alert,) = listener.alerts
    assert (alert["flow"], alert["event"], alert["reason"]) == ("retrain", "refused", state.message)


def assert_refused(root, state, says):
    """As version 2, which is challenger, and nothing is committed."""
    assert (state.type.value, state.name) == ("COMPLETED", "Refused")
    assert says in state.message
    assert "Version 2 is challenger, version 1 stays champion." in state.message
    assert len(commits(root)) == 2
    assert sh(root, "git status --porcelain") == ""
    tags, aliases = versions(root)
    assert sorted(tags) == ["1", "2"]
    assert aliases == {"champion": "1", "challenger": "2"}
    assert says in tags["2"]["gate"]


def test_better_conversations_are_promoted_a_tiny_rate_refused(root, api):
    folder = root.parent / "inbox"
    (folder / "sft").mkdir(parents=True)
    (folder / "sft/support.jsonl").write_text(chats(300, "better"))
    state = run(root, api, inbox=str(folder))
    assert state.name == "Promoted", state.message
    assert "assistant_loss 4.5 → 4.2" in state.message
    text = (root / "params.yaml").read_text()
    head, sft, rest = text.partition("\nsft:")
    (root / "params.yaml").write_text(
        head + sft + re.sub(r"learning_rate: \S+", "learning_rate: 1.0e-5", rest, count=1)
    )
    sh(root, "git commit -qam 'a tiny rate'")
    state = run(root, api)
    assert state.name == "Refused"
    assert "worse beyond 2 standard errors: assistant_loss 4.2 → 4.55 (+0.35 ± " in state.message


def test_a_champion_that_was_not_promoted_here_is_one_clear_line(root):
    with registry.registry_client(root) as client:
        registry.register_version(client, "dvc://out/dpo?md5=x", {"model_md5": "x", "previous": "1"})
        registry.point(client, registry.CHAMPION, "2")
    with pytest.raises(UserError, match="version 2 of verdict has no tag 'commit'"):
        rollback(root)


def test_new_held_out_data_measures_the_champion_again(root, api):
    (root / "data/validation.txt").write_text("books 1\nnews 1.1\nweb 0.9\nlaw 2\n")
    sh(root, "git commit -qam 'another source'")
    state = run(root, api, new_file(root, "1.5\n"))
    assert state.name == "Promoted", state.message
    assert "bits_per_byte 3.375 → 2.75" in state.message
    assert measured(root) == ["1.0", "0.5"]
    assert commits(root)[1] == "another source"
    assert not (workspace.retrain_folder(root) / "champion").exists()
    ends = [json.loads(path.read_text()) for path in spools(root).glob("pipeline-*/end.json")]
    assert [end["status"] for end in ends if list(end["states"]) == ["eval"]] == ["FINISHED"]
    assert len(ends) == len(list(spools(root).glob("pipeline-*"))), "MLflow's run of every pipeline is closed"


def test_the_same_model_from_new_held_out_data_is_recorded(root, api):
    (root / "data/validation.txt").write_text("books 1\nnews 1.2\n")
    sh(root, "git commit -qam 'other sources'")
    state = run(root, api)
    assert state.name == "Recorded"
    assert "same model as the champion, version 1" in state.message
    assert sh(root, "git show --stat --format= --name-only HEAD") == "dvc.lock"
    assert versions(root)[1] == {"champion": "1", "challenger": "1"}


def test_nothing_new_commits_nothing_and_needs_no_prefect(root, monkeypatch, capsys):
    inbox = root.parent / "inbox"
    (inbox / "pretrain").mkdir(parents=True)
    shutil.copy(root / "data/pretrain/old.txt", inbox / "pretrain/again.txt")  # what is there already is not new
    monkeypatch.chdir(root)
    head = sh(root, "git rev-parse HEAD")
    assert cli.retrain_main(["--inbox", str(inbox)]) == 0
    assert capsys.readouterr().out.startswith("Nothing new")
    assert sh(root, "git rev-parse HEAD") == head
    assert sh(root, "dvc stage list --name-only").split() == [
        "dpo",
        "eval",
    ]  # the worktree is no part of the repository


def test_the_repositorys_own_inbox_is_read_without_being_named(root, monkeypatch, capsys):
    (root / "inbox/pictures").mkdir(parents=True)
    (root / "inbox/pictures/new.txt").write_text("9\n")
    monkeypatch.chdir(root)
    assert cli.retrain_main([]) == 0
    out = capsys.readouterr().out
    assert f"refused: {root}/inbox/pictures/new.txt: no source is called 'pictures'. Folders of the inbox: " in out
    assert "Nothing new" in out


def test_nothing_new_in_the_flow_is_a_state_of_its_own(root, api):
    state = run(root, api)
    assert (state.type.value, state.name) == ("COMPLETED", "NothingNew")
    assert len(commits(root)) == 2


def test_a_second_retrain_is_refused_politely(root, api, monkeypatch, capsys):
    monkeypatch.chdir(root)
    path = workspace.retrain_folder(root) / "lock"
    path.parent.mkdir(parents=True)
    with path.open("w") as held:
        held.write("4711\n")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        state = run(root, api)
        assert (state.type.value, state.name) == ("CANCELLED", "Busy")
        assert "another retrain is at work here (process 4711)" in state.message
        assert cli.retrain_main([]) == cli.rollback_main([]) == cli.BUSY
        assert "process 4711" in capsys.readouterr().err
        with pytest.raises(Busy):
            rollback(root)


def test_only_uncommitted_changes_that_matter_are_refused(root, monkeypatch, capsys, listener):
    monkeypatch.setenv("VERDICT_ALERT_URLS", listener.url)
    monkeypatch.chdir(root)
    (root / "README.md").write_text("a better toy\n")
    assert cli.retrain_main([]) == 0
    (root / "train.py").write_text(TRAIN + "# changed\n")
    (root / "data/pretrain/old.txt").write_text("0.6\n")
    assert cli.retrain_main([]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: not committed: data/pretrain/old.txt, train.py.")
    assert len(error.splitlines()) == 1
    assert [(a["flow"], a["event"]) for a in listener.alerts] == [("retrain", "failed")]  # as a cron job's must be
    assert cli.rollback_main([]) == 1


def test_silent_registry_promotes_nothing_and_the_next_run_does(root, api, monkeypatch):
    data, head = new_file(root, "1.5\n"), sh(root, "git rev-parse HEAD")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        state = run(root, api, data)
    assert state.is_failed()
    assert "the model registry at http://127.0.0.1:1 does not answer" in state.message
    assert len(state.message.splitlines()) == 1
    assert sh(root, "git rev-parse HEAD") == head
    assert run(root, api, data).name == "Promoted"
    assert measured(root) == ["1.0"]  # what was trained was kept


def test_a_failing_stage_is_named_once_and_nothing_is_committed(root, api, monkeypatch, listener):
    monkeypatch.setenv("VERDICT_ALERT_URLS", listener.url)
    state = run(root, api, new_file(root, "not a number\n"))
    assert state.is_failed()
    assert "Failed: dpo, exited with 1" in state.message and "make run" not in state.message
    assert state.message.splitlines()[-1] == "`make retrain` resumes from the finished stages."
    assert len(commits(root)) == 2
    (alert,) = listener.alerts
    assert (alert["flow"], alert["event"], alert["stage"]) == ("retrain", "failed", "dpo")


def test_killed_while_training_the_next_run_starts_over(root, api, home, monkeypatch, capsys):
    data, slow = new_file(root, "1.5\n"), root.parent / "slow"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PREFECT_HOME": str(home), "PREFECT_API_URL": api}
    command = [sys.executable, "-m", "flows.retrain", "--data", data]
    process = subprocess.Popen(command, cwd=root, env=environment | {"SLOW": str(slow)}, stdout=subprocess.DEVNULL)
    wait_for(slow.exists)
    monkeypatch.chdir(root)
    assert cli.retrain_main([]) == cli.BUSY
    process.kill()
    process.wait()
    state = run(root, api, data)  # waits until the orphaned stage has stopped
    assert state.name == "Promoted", state.message
    assert versions(root)[1] == {"champion": "2", "challenger": "2"}


@pytest.mark.parametrize("when", ["before", "after", "tracker lost"])
def test_next_run_finishes_an_interrupted_promotion(root, api, monkeypatch, when):
    """The branch moves first; whether it did decides what the next run makes of the note."""
    data = new_file(root, "1.5\n")
    advance, pushed = git.advance, when != "before"

    def interrupted(*arguments):
        told = advance(*arguments) if pushed else ""
        if when == "tracker lost":
            patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
            return told
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(git, "advance", interrupted)
        state = run(root, api, data)
    assert state.is_failed() if when == "tracker lost" else state.is_cancelled()
    assert "the next run" in state.message
    assert versions(root)[1] == {"champion": "1", "challenger": "2"}
    assert len(commits(root)) == 2 + pushed
    broken = workspace.retrain_folder(root) / "tree"
    (broken / "data/pretrain/half.txt").write_text("5\n")  # and what a kill may leave in the worktree
    Path(sh(broken, "git rev-parse --absolute-git-dir"), "index.lock").touch()
    state = run(root, api, data)
    assert state.name == ("NothingNew" if pushed else "Promoted"), state.message
    assert versions(root)[1]["champion"] == "2"
    assert len(commits(root)) == 3
    assert sh(root, "git ls-files data/pretrain").split() == ["data/pretrain/new.txt", "data/pretrain/old.txt"]


def test_a_promotion_under_later_changes_is_not_rolled_back(root):
    head = sh(root, "git rev-parse HEAD")
    with registry.registry_client(root) as client:
        registry.register_version(client, "dvc://out/dpo?md5=x", {"model_md5": "x", "commit": head, "previous": "1"})
        registry.point(client, registry.CHAMPION, "2")
    edit(root / "dvc.lock", "seed: 0", "seed: 1")
    sh(root, "git commit -qam 'by hand'")
    with pytest.raises(UserError, match=r"cannot be reverted, later commits changed the same: dvc\.lock\."):
        rollback(root)
    assert versions(root)[1]["champion"] == "2"
    assert commits(root)[0] == "by hand"


def test_promotion_is_pushed_and_a_lost_race_changes_nothing(root, api):
    sh(root, "git init -q --bare -b main ../origin.git && git remote add origin ../origin.git")
    sh(root, "dvc remote add -q -d store ../store && git commit -qam 'a store' && git push -q origin main")
    sh(root, f"git clone -q ../origin.git ../other && cd ../other && {NAMED}")
    assert run(root, api, new_file(root, "1.5\n")).name == "Promoted"
    assert sh(root, "git rev-parse HEAD") == sh(root, "git -C ../origin.git rev-parse main")
    md5 = versions(root)[0]["2"]["model_md5"]
    assert (root.parent / "store/files/md5" / md5[:2] / md5[2:]).exists()

    theirs = "cd ../other && git pull -q && echo more >> README.md && git commit -qam theirs && git push -q"
    sh(root, theirs)
    branch, remote, base = resolve_branch(root)
    assert (branch, remote, base) == ("main", "origin", sh(root, "git -C ../other rev-parse HEAD"))
    sh(root, f"git worktree add -q --detach ../tree {base}")
    ours = git.commit(root.parent / "tree", base, "on top of theirs")
    assert git.advance(root, branch, remote, ours) == "pushed to origin"  # and the checkout follows
    assert sh(root, "git rev-parse HEAD") == sh(root, "git -C ../origin.git rev-parse main") == ours

    sh(root, theirs)
    with pytest.raises(UserError, match="git push"):
        git.advance(root, branch, remote, git.commit(root.parent / "tree", ours, "too late"))
    assert sh(root, "git rev-parse HEAD") == ours


def test_remote_that_refuses_pushes_fails_before_training(root, api):
    """git's own protocol without receive-pack, as a public repository of somebody else is."""
    sh(
        root,
        "git init -q --bare -b main ../origin.git && git remote add origin ../origin.git && git push -q -u origin main",
    )
    sh(root, "git config remote.origin.receivepack false")
    state = run(root, api, new_file(root, "1.5\n"))
    assert state.type.value == "FAILED"
    assert "git push" in state.message and "git remote remove origin" in state.message
    assert not (root.parent / "measured").exists()
    sh(root, "git remote remove origin")
    assert resolve_branch(root)[1] is None


def test_a_folder_that_dvc_tracks_gets_new_data_by_dvc(root, api):
    sh(root, "git rm -rq --cached data/pretrain && dvc add -q data/pretrain && git add data && git commit -qm 'by dvc'")
    inbox = root.parent / "inbox"
    (inbox / "pretrain").mkdir(parents=True)
    (inbox / "pretrain/good.txt").write_text("1.5\n")
    (inbox / "pretrain/half.txt.part").write_text("9\n")
    state = run(root, api, inbox=str(inbox))
    assert state.name == "Promoted", state.message
    changed = sh(root, "git show --stat --format= --name-only HEAD").split()
    assert changed == ["data/pretrain.dvc", "dvc.lock"]
    sh(root, "dvc checkout -q")
    assert sorted(path.name for path in (root / "data/pretrain").iterdir()) == ["good.txt", "old.txt"]


def test_folder_whose_data_is_lost_takes_no_new_file(root, api):
    sh(root, "git rm -rq --cached data/pretrain && dvc add -q data/pretrain && git add data && git commit -qm 'by dvc'")
    sh(root, "rm -r .dvc/cache data/pretrain")
    state = run(root, api, new_file(root, "1.5\n"))
    assert state.is_failed() and len(state.message.splitlines()) == 1
    assert "data/pretrain is tracked by DVC and in neither its cache nor its remote" in state.message
    assert commits(root)[0] == "by dvc"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("sft={new}", r"new\.txt: .*messages"),
        ("absent.txt", r"absent\.txt: no such file\. Write FILE or SOURCE=FILE; sources: pretrain, quality,"),
        ("validation={new}", r"data\.validation\.path in params\.yaml is the file data/validation\.txt; .* git mv"),
    ],
)
def test_data_that_cannot_be_taken_in_is_one_clear_line(root, api, data, says):
    state = run(root, api, data.format(new=new_file(root, "1\n")))
    assert state.is_failed()
    assert len(state.message.splitlines()) == 1
    assert re.search(says, state.message)


def test_bad_file_is_refused_and_the_good_ones_are_used(root, api, monkeypatch, listener):
    monkeypatch.setenv("VERDICT_ALERT_URLS", listener.url)
    folder = root.parent / "inbox"
    for name, text in (("pretrain/good.txt", "1.5\n"), ("pretrain/dump.xls", "?"), ("sft/chats.jsonl", "{}\n")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    state = run(root, api, inbox=str(folder))
    assert state.name == "Promoted", state.message
    assert sh(root, "git ls-files data/pretrain").split() == ["data/pretrain/good.txt", "data/pretrain/old.txt"]
    (day,) = (folder / "refused").iterdir()
    kept = sorted(path.relative_to(day).as_posix() for path in day.rglob("*") if path.is_file())
    assert kept == [
        "pretrain/dump.xls",
        "pretrain/dump.xls.reason.txt",
        "sft/chats.jsonl",
        "sft/chats.jsonl.reason.txt",
    ]
    assert "unknown type of file" in (day / "pretrain/dump.xls.reason.txt").read_text()
    (alert,) = listener.alerts
    assert (alert["event"], alert["reason"]) == ("refused", "2 files of the inbox cannot be used")
    assert run(root, api, inbox=str(folder)).name == "NothingNew"


def test_files_of_a_refused_model_are_not_tried_again(root, api):
    folder = root.parent / "inbox"
    (folder / "pretrain").mkdir(parents=True)
    (folder / "pretrain/bad.txt").write_text("0.1\n")
    state = run(root, api, inbox=str(folder))
    assert_refused(root, state, "worse beyond 2 standard errors")
    (reason,) = (folder / "refused").rglob("pretrain/bad.txt.reason.txt")
    assert reason.read_text().strip() == state.message and reason.with_name("bad.txt").exists()
    assert run(root, api, inbox=str(folder)).name == "NothingNew"


def test_large_file_goes_to_dvc_and_the_small_ones_to_git(root, api, monkeypatch):
    monkeypatch.setattr(arrivals, "GIT_LIMIT", 10)
    large, small = new_file(root, "1.5\n" * 9, "large.txt"), new_file(root, "1.5\n", "small.txt")
    state = run(root, api, large, small)
    assert state.name == "Promoted", state.message
    changed = sh(root, "git show --stat --format= --name-only HEAD").split()
    folder = "data/pretrain/"
    assert changed == [f"{folder}.gitignore", f"{folder}large.txt.dvc", f"{folder}small.txt", "dvc.lock"]
    sh(root, "dvc checkout -q")
    assert (root / "data/pretrain/large.txt").read_text() == "1.5\n" * 9
    assert run(root, api, large).name == "NothingNew"


def test_arrivals_have_a_source_and_each_content_counts_once(tmp_path):
    for folder in ("sft", "refused/2026-01-01/sft"):
        (tmp_path / folder).mkdir(parents=True)
    names = {
        "a.txt": "1",
        "b.txt": "1",
        "sft/c.txt": "1",
        ".hidden": "2",
        "x.tmp": "3",
        "refused/2026-01-01/sft/d": "4",
    }
    for name, text in names.items():
        (tmp_path / name).write_text(text)
    found = inbox.arrived([f"evals={tmp_path / 'a.txt'}"], tmp_path)
    assert [(a.source, a.path.name) for a in found] == [("evals", "a.txt"), ("pretrain", "a.txt"), ("sft", "c.txt")]


def test_scores_are_read_from_what_the_eval_stage_writes(tmp_path):
    (tmp_path / "out/eval").mkdir(parents=True)

    def write(name, rows):
        (tmp_path / f"out/eval/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("documents", [{"source": "books", "bytes": 2, "dpo": 4 * math.log(2)}, {"source": "news", "bytes": 4}])
    with pytest.raises(UserError, match="the figures of stage eval cannot be read: KeyError: 'dpo'"):
        scores(tmp_path, "bits_per_byte")
    write("documents", [{"source": s, "bytes": 2 * k, "dpo": 4 * math.log(2)} for k, s in ((1, "books"), (3, "news"))])
    found = scores(tmp_path, "bits_per_byte")
    assert list(found) == ["0 books", "1 news"] and found["0 books"] == pytest.approx((-4, 2))
    assert figure(found, "bits_per_byte") == pytest.approx(1.0)
    write("conversations", [{"tokens": 2, "dpo": 6.0}, {"tokens": 0, "dpo": -0.0}, {"tokens": 4, "dpo": 6.0}])
    found = scores(tmp_path, "assistant_loss")
    assert found == {"0": (-6.0, 2), "2": (-6.0, 4)} and figure(found, "assistant_loss") == 2.0
    write(
        "pairs",
        [{"id": "p", "dpo": [-1.0, -2.0]}, {"id": "p", "dpo": [-3.0, -2.0]}, {"id": "q", "dpo": [math.nan, -1]}],
    )
    found = scores(tmp_path, "preferences")
    assert list(found)[:2] == ["0 p", "1 p"]  # of one name, and still two
    assert [score.total for score in found.values()][:2] == [1.0, 0.0]
    assert math.isnan(found["2 q"].total)
    write(
        "tasks",
        [{"model": m, "task": "quiz", "id": f"quiz/{i}", "acc": float(i)} for m in ("sft", "dpo") for i in (0, 1)],
    )
    assert scores(tmp_path, "tasks.quiz.acc") == {"0 quiz/0": (0.0, 1.0), "1 quiz/1": (1.0, 1.0)}
    assert scores(tmp_path, "tasks.absent.acc") == {}
    with pytest.raises(UserError, match="the figures of stage eval cannot be read"):
        scores(tmp_path / "nowhere", "preferences")


@pytest.mark.parametrize("name", ["retrain", "rollback"])
def test_help_imports_nothing_slow(name):
    code = (
        f"import sys; from flows.cli import {name}_main as main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith(f"usage: python -m flows.{name}")
    assert not {"prefect", "dvc", "pydantic", "mlflow"} & set(ended.stdout.splitlines()[-1].split())
