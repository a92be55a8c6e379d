"""What an earlier run left: processes that are ending, and DVC's locks."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest

from flows.execution import waiting
from flows.execution.waiting import Occupied, patiently, repair_rwlock, until_free
from stages.contract.errors import UserError
from stages.contract.process.lifetime import started
from stages.contract.tracking.locations import spools

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def root(tmp_path):
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def begin(root):
    """A function that starts a process in ``root`` with further arguments; it ends with the test."""
    begun = []

    def start(*arguments):
        begun.append(subprocess.Popen([*SLEEP, *arguments], cwd=root))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()


def write(root, text, age=0.0):
    path = root / ".dvc" / "tmp" / "rwlock"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.utime(path, (time.time() - age,) * 2)
    return path


def held(*pids, command="dvc repro a"):
    """The text of an rwlock in which the processes ``pids`` write, the first reads too."""
    infos = [{"pid": pid, "cmd": command} for pid in pids]
    return json.dumps({"write": {f"/out{k}": info for k, info in enumerate(infos)}, "read": {"/in": infos[:1]}})


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '{"write": 3}', '{"read": {"a": [1]}}', '{"write": {"a": {"pid": "1", "cmd": ""}}}',
     '{"other": {}}', b"\xff\xfe", "[" * 10_000],
    ids=lambda text: str(text)[:12],
)  # fmt: skip
def test_lock_file_that_dvc_cannot_read_is_removed(root, text):
    path, said = write(root, text), []
    assert repair_rwlock(root, said.append) == []
    assert not path.exists() and len(said) == 1 and said[0].startswith(".dvc/tmp/rwlock was torn")


def test_unreadable_lock_file_stays_while_dvc_is_at_work(root, begin):
    path, dvc = write(root, ""), begin("dvc", "repro")
    assert [process.pid for process in repair_rwlock(root)] == [dvc.pid]
    assert path.exists()


def test_lock_file_that_is_a_folder_is_one_line_with_advice(root):
    (root / ".dvc" / "tmp" / "rwlock").mkdir()
    with pytest.raises(UserError, match=r"rwlock.*emove it") as error:
        repair_rwlock(root)
    assert len(str(error.value).splitlines()) == 1


def test_only_entries_of_processes_that_made_them_stay(root, begin):
    ended, unburied, at_work = begin("dvc"), begin("dvc"), begin("dvc", "repro")
    ended.kill()
    ended.wait()
    unburied.kill()
    os.waitid(os.P_PID, unburied.pid, os.WEXITED | os.WNOWAIT)
    path = write(root, held(at_work.pid, ended.pid, unburied.pid, 1))
    assert [str(process) for process in repair_rwlock(root)] == [f"process {at_work.pid} (dvc repro a)"]
    info = {"pid": at_work.pid, "cmd": "dvc repro a"}
    assert json.loads(path.read_text()) == {"write": {"/out0": info}, "read": {"/in": [info]}}


def test_process_younger_than_the_file_made_no_entry(root, begin):
    write(root, held(begin("dvc", "repro").pid), age=3600)
    assert repair_rwlock(root) == []


def test_next_run_waits_for_one_that_is_ending_and_says_for_whom(root, begin, monkeypatch):
    stage = begin("stages.long")
    folder = spools(root) / "long"
    folder.mkdir(parents=True)
    run = {"stage": "long", "pid": stage.pid, "pid_started": started(stage.pid)}
    (folder / "run.json").write_text(json.dumps(run))
    monkeypatch.setattr(waiting.time, "sleep", lambda seconds: (stage.kill(), stage.wait()))
    said = []
    until_free(root, said.append)
    assert said == [f"waiting for process {stage.pid} (stage long) to end, 90 s at most: it works here, or is saving"
                    " its state"]  # fmt: skip


def test_run_beside_another_is_refused_after_a_while(root, begin, monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE_SECONDS", 0)
    other = begin("dvc", "repro")
    write(root, held(other.pid))
    with pytest.raises(Occupied, match=rf"process {other.pid} .* is still at work here.*kill {other.pid}"):
        until_free(root, print)


def test_dvcs_refusal_is_no_answer_until_time_is_up(root, monkeypatch):
    answers = [Occupied("busy"), Occupied("busy"), None]

    def work():
        if answer := answers.pop(0):
            raise answer
        return "done"

    assert patiently(work, root, print) == "done"
    monkeypatch.setattr(waiting, "PATIENCE_SECONDS", -1)
    answers += [Occupied("busy")]
    with pytest.raises(Occupied):
        patiently(work, root, print)


def test_read_only_repository_gets_advice_to_copy(tmp_path, monkeypatch):
    def read_only(path):
        raise OSError(errno.EROFS, "Read-only file system", path)

    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / ".dvc" / "tmp" / "rwlock").write_text("{}")
    monkeypatch.setattr("zc.lockfile.LockFile", read_only)
    with pytest.raises(UserError, match=r"rwlock.lock: Read-only file system .* Run in a copy that can be written"):
        waiting.repair_rwlock(tmp_path)
