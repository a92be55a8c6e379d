import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stages.contract.files import Locked, atomic_folder, atomic_write, locked, replace_folder

ROOT = Path(__file__).parents[2]


def test_atomic_write_replaces_the_file_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "scores.npy"
    path.write_text("old")
    with atomic_write(path) as part:
        part.write_text("new")
        assert path.read_text() == "old" and part.suffix == ".npy" and part.name.startswith(".")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_atomic_write_keeps_the_old_file_when_the_block_raises(tmp_path):
    path = tmp_path / "note.json"
    path.write_text("old")
    with pytest.raises(OSError, match="disk"), atomic_write(path) as part:
        part.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_atomic_folder_replaces_the_folder_as_a_whole(tmp_path):
    target = tmp_path / "shard"
    for text in ("first", "second"):
        with atomic_folder(target) as folder:
            (folder / text).write_text(text)
    assert [file.name for file in target.iterdir()] == ["second"] and list(tmp_path.iterdir()) == [target]


def test_atomic_folder_keeps_the_old_folder_when_the_block_raises(tmp_path):
    target = tmp_path / "shard"
    with atomic_folder(target) as folder:
        (folder / "whole").touch()
    with pytest.raises(OSError, match="disk"), atomic_folder(target) as folder:
        (folder / "half").touch()
        raise OSError("disk full")
    assert [file.name for file in target.iterdir()] == ["whole"] and list(tmp_path.iterdir()) == [target]


def test_atomic_folder_drops_what_a_killed_writer_left(tmp_path):
    left = atomic_folder(tmp_path / "shard")
    (left.__enter__() / "half").touch()  # never left: killed
    with atomic_folder(tmp_path / "shard") as folder:
        assert not list(folder.iterdir())


@pytest.mark.parametrize("kind", ["nothing", "a file", "a link", "a full folder"])
def test_replace_folder_replaces_anything(tmp_path, kind):
    target, written = tmp_path / "target", tmp_path / "written"
    written.mkdir()
    (written / "new").touch()
    if kind == "a file":
        target.touch()
    if kind == "a link":
        target.symlink_to("nowhere")
    if kind == "a full folder":
        (target / "old").mkdir(parents=True)
    replace_folder(written, target)
    assert [path.name for path in target.iterdir()] == ["new"] and not written.exists()


HOLD = """
import sys
from pathlib import Path
from stages.contract.files import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path):
    """A lock file and the process that holds it until its standard input ends."""
    path = tmp_path / "work" / ".lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield path, process
        process.kill()


def test_lock_of_another_process_is_refused_with_its_id(held):
    path, process = held
    with pytest.raises(Locked) as error, locked(path):
        pass
    assert error.value.holder == str(process.pid)


def test_lock_is_free_when_its_holder_is_killed(held):
    path, process = held
    process.kill()
    process.wait()
    with locked(path):
        pass


def test_lock_waits_for_its_holder_and_names_it_once(held):
    path, process = held
    names = []
    threading.Thread(target=lambda: (time.sleep(0.5), process.stdin.close())).start()
    with locked(path, patience=60, wait=names.append):
        assert names == [str(process.pid)]


def test_lock_file_that_its_holder_removed_is_made_anew(tmp_path):
    path = tmp_path / ".lock"
    with locked(path):
        path.unlink()
        with locked(path):  # another file: nobody holds it
            pass
