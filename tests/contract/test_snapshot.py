"""What is recorded is what was read: params, code and inputs are those of one moment, or the stage is refused."""

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest

import stages
from stages.contract import snapshot
from stages.contract.errors import UserError
from stages.contract.scratch import inherit, locked_scratch
from tests.contract.conftest import ROOT

DVC_YAML = """
stages:
  toy:
    cmd: "true"
    deps: ["${data.sft.path}", code.py]
    params: [data.sft, dedup.ngram]
    outs: [out]
"""


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A DVC repository whose stage reads the folder data/sft, code.py and dedup.ngram; the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "BEGUN", time.time_ns() + 10**12)  # all code was here before this process
    subprocess.run(["git", "init", "-q"], check=True)
    Path(".dvc/tmp").mkdir(parents=True)
    Path(".dvc/config").write_text("[core]\n    analytics = false\n")
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    Path("dvc.yaml").write_text(DVC_YAML)
    Path("code.py").write_text("A = 1")
    Path("data/sft").mkdir(parents=True)
    Path("data/sft/a.jsonl").write_text("good")
    return tmp_path


def put_back(path):
    old, status = path.read_bytes(), path.stat()
    path.write_bytes(b"evil")
    path.write_bytes(old)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def edit_params(old, new):
    path = Path("params.yaml")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_inputs_put_back_are_refused_and_params_put_back_are_not(repo):
    taken = snapshot.take("toy", repo)
    edit_params("ngram: 5 ", "ngram: 6 ")
    assert taken.changed() == ["dedup.ngram"]
    edit_params("ngram: 6 ", "ngram: 5 ")
    edit_params("beta: 0.1", "beta: 0.2")  # no stage of these reads it
    assert taken.params.dedup.ngram == 5 and taken.changed() == []
    put_back(Path("data/sft/a.jsonl"))
    assert taken.changed() == ["data/sft/a.jsonl"]
    Path("data/sft/pipe").symlink_to("/nonexistent")
    assert taken.changed() == ["data/sft/a.jsonl"] or "data/sft/pipe" in taken.changed()


def test_work_written_after_the_last_check_of_the_inputs_is_dropped(repo):
    taken = snapshot.take("toy", repo)
    with locked_scratch(taken.identity) as scratch:
        inherit(scratch, repo, taken.stamps)
        (scratch / "early").touch()
        time.sleep(0.05)
        snapshot.refuse_changed(taken, scratch)  # nothing changed: early is of the inputs of the identity
        time.sleep(0.05)
        put_back(Path("data/sft/a.jsonl"))
        (scratch / "late").mkdir()
        with pytest.raises(UserError, match=r"data/sft/a\.jsonl changed while the stage ran.* resumes from before"):
            snapshot.refuse_changed(taken, scratch)
        assert (scratch / "early").exists() and not (scratch / "late").exists()


def test_killed_run_leaves_no_work_of_inputs_put_back_later(repo):
    killed = snapshot.take("toy", repo)
    with locked_scratch(killed.identity) as scratch:
        inherit(scratch, repo, killed.stamps)
        (scratch / "work").touch()
    again = snapshot.take("toy", repo)
    with locked_scratch(again.identity) as scratch:
        inherit(scratch, repo, again.stamps)
        assert (scratch / "work").exists(), "untouched inputs"
    time.sleep(0.05)
    (scratch / "late").touch()
    put_back(Path("data/sft/a.jsonl"))
    again = snapshot.take("toy", repo)
    assert again.identity == killed.identity
    with locked_scratch(again.identity) as scratch:
        inherit(scratch, repo, again.stamps)
        assert not (scratch / "late").exists()


def test_full_disk_does_not_lose_the_note_on_the_inputs(repo, monkeypatch):
    def full(path, text, **options):
        path.touch()
        os.truncate(path, 0)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    killed = snapshot.take("toy", repo)
    with locked_scratch(killed.identity) as scratch:
        inherit(scratch, repo, killed.stamps)
        (scratch / "late").touch()
    with locked_scratch(killed.identity) as scratch, monkeypatch.context() as disk:
        disk.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            inherit(scratch, repo, killed.stamps)
    time.sleep(0.05)
    (scratch / "late").touch()
    put_back(Path("data/sft/a.jsonl"))
    with locked_scratch(killed.identity) as scratch:
        inherit(scratch, repo, snapshot.take("toy", repo).stamps)
        assert not (scratch / "late").exists()


@pytest.mark.parametrize(
    "edit",
    [
        lambda: edit_params("ngram: 5 ", "ngram: 6 "),
        lambda: put_back(Path("data/sft/a.jsonl")),
        lambda: Path("data/sft/b.jsonl").touch(),
        lambda: put_back(Path("code.py")),
    ],
)
def test_edit_while_inputs_are_hashed_is_refused(repo, monkeypatch, edit):
    def hashing(stage, root, identity_of=snapshot.identity_of):
        edit()
        return identity_of(stage, root)

    monkeypatch.setattr(snapshot, "identity_of", hashing)
    with pytest.raises(UserError, match="changed while the stage began"):
        snapshot.take("toy", repo)


def test_code_edited_after_the_first_import_is_refused(repo, monkeypatch):
    monkeypatch.setattr(stages, "BEGUN", time.time_ns() - 10**9)
    with pytest.raises(UserError, match=r"^code\.py changed while the stage began"):
        snapshot.take("toy", repo)


def test_touched_input_interrupts_the_stage(repo, monkeypatch):
    monkeypatch.setattr(snapshot, "SECONDS", 0.05)
    taken = snapshot.take("toy", repo)
    with locked_scratch(taken.identity) as scratch:
        inherit(scratch, repo, taken.stamps)
        with pytest.raises(UserError, match="changed while the stage ran"), snapshot.unchanged(taken, scratch):
            put_back(Path("data/sft/a.jsonl"))
            time.sleep(60)


def test_input_that_dvcignore_hides_is_refused(repo):
    Path(".dvcignore").write_text("*.jsonl\n")
    with pytest.raises(UserError, match=r"^data/sft/a\.jsonl is an input that \.dvcignore hides"):
        snapshot.take("toy", repo)
