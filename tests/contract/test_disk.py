import errno
import os
import re
import resource
import signal
from types import SimpleNamespace

import pytest

from stages.contract import disk
from stages.contract.errors import UserError


def refused(action):
    try:
        action()
    except BaseException as e:
        return disk.refusal(e)
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("number", disk.REFUSED)
def test_refusal_names_the_errno_wherever_it_is(number):
    said = os.strerror(number)
    assert disk.refusal(OSError(number, said)) == said
    assert disk.refusal(Exception(f"Error while serializing: I/O error: x (os error {number})")) == said

    def wrapped():
        try:
            raise OSError(number, said)
        except OSError as e:
            raise RuntimeError("something else") from e

    assert refused(wrapped) == said


@pytest.mark.parametrize(
    "error", [ValueError("x"), OSError(errno.ENOENT, "no such file"), Exception("(os error 2)"), KeyboardInterrupt()]
)
def test_other_errors_are_no_refusal(error):
    assert disk.refusal(error) == ""


def test_what_libraries_make_of_a_full_disk_is_recognized(tmp_path):
    """By a limit on the size of files: safetensors, torch and Python fail as on a full disk."""
    import torch
    from safetensors.torch import save_file

    tensors = {"a": torch.zeros(100_000)}
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        assert refused(lambda: save_file(tensors, tmp_path / "a.safetensors")) == os.strerror(errno.EFBIG)
        assert refused(lambda: torch.save(tensors, tmp_path / "a.pt"))
        assert refused(lambda: (tmp_path / "a").write_bytes(b"x" * 100_000)) == os.strerror(errno.EFBIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_room_is_that_of_the_nearest_folder_there_is(tmp_path):
    assert disk.free(tmp_path / "not" / "yet") == pytest.approx(disk.free(tmp_path), rel=0.1)
    line = disk.explain("checkpoints", tmp_path, 2.5e6, os.strerror(errno.ENOSPC))
    assert line.startswith(f"no room for checkpoints in {tmp_path} (needs 2.5 MB, has ")
    assert disk.explain("checkpoints", tmp_path, 1, os.strerror(errno.EROFS)).endswith("(Read-only file system)")


def test_place_that_cannot_be_written_is_named_and_a_bug_is_not_hidden():
    line = disk.describe(OSError(errno.EROFS, "Read-only file system", "/repo/.dvc/tmp/lock"))
    assert re.fullmatch(r"/repo/.dvc/tmp/lock: Read-only file system \(.* free there\). Run in a copy .*", line)
    assert "Make room" in disk.describe(OSError(errno.ENOSPC, "No space left on device", "/repo/x"))
    assert disk.describe(OSError(errno.EBADF, "Bad file descriptor")) is None


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with an out of 8 MiB, on a disk with 5 MiB free that cannot reflink."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").write_bytes(bytes(8 << 20))
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    monkeypatch.setattr(disk, "_reflinks", lambda file, folder: False)
    return tmp_path


def test_outs_that_have_no_room_in_the_cache_are_one_line_with_place_and_sizes(root):
    cache = root / ".dvc" / "cache"
    with pytest.raises(UserError, match=rf"DVC's cache {cache} has 5\.0 MiB free, and the outs need 9\.0 MiB") as error:
        disk.check_room({"out": "a" * 32 + ".dir"}, root, cache)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("why", ["cached already", "reflink", "hardlink", "enough"])
def test_outs_that_need_no_copy_or_have_room_pass(root, monkeypatch, why):
    cache = root / ".dvc" / "cache"
    if why == "cached already":
        (cache / "files" / "md5" / "aa").mkdir(parents=True)
        (cache / "files" / "md5" / "aa" / ("a" * 30 + ".dir")).touch()
    if why == "reflink":
        monkeypatch.setattr(disk, "_reflinks", lambda file, folder: True)
    if why == "hardlink":
        (root / ".dvc" / "config").write_text("[cache]\n    type = hardlink\n")
    if why == "enough":
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=10 << 20))
    disk.check_room({"out": "a" * 32 + ".dir"}, root, cache)
