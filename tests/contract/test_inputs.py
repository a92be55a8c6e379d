"""What DVC would not hash, or could not, is refused by name; a stamp shows whatever was put back."""

import mmap
import os
import socket

import pytest

from stages.contract.errors import UserError
from stages.contract.inputs import settle_stamps, stamps, walk


def _pipe(folder):
    os.mkfifo(folder / "pipe.jsonl")


def _socket(folder):
    with socket.socket(socket.AF_UNIX) as s:
        here = os.getcwd()
        os.chdir(folder)
        s.bind("s.jsonl")
        os.chdir(here)


def _repository(folder):
    (folder / "sub" / ".dvc").mkdir(parents=True)


REFUSED = {
    "a link to a folder": lambda f: (f / "linked").symlink_to(f.parent),
    "a link to its own folder": lambda f: (f / "sub").mkdir() or (f / "sub" / "loop").symlink_to(f),
    "a broken link": lambda f: (f / "dangling.jsonl").symlink_to("/nonexistent"),
    "a link to itself": lambda f: (f / "loop.jsonl").symlink_to(f / "loop.jsonl"),
    "a pipe": _pipe,
    "a link to a device": lambda f: (f / "zero.jsonl").symlink_to("/dev/zero"),
    "a socket": _socket,
    "a name in Latin-1": lambda f: open(os.fsencode(f) + b"/caf\xe9.jsonl", "w").close(),
    "a folder in Latin-1": lambda f: os.mkdir(os.fsencode(f) + b"/caf\xe9"),
    "a .dvcignore": lambda f: (f / ".dvcignore").touch(),
    "a repository": _repository,
}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_text("{}")
    return folder


@pytest.mark.parametrize("kind", REFUSED)
def test_path_that_dvc_does_not_hash_is_refused_by_name(data, kind):
    REFUSED[kind](data)
    with pytest.raises(UserError) as error:
        walk(data)
    assert str(error.value).startswith(f"{data}/") and len(str(error.value).splitlines()) == 1
    str(error.value).encode("utf-8")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file_is_refused_by_name(data):
    (data / "a.jsonl").chmod(0)
    with pytest.raises(UserError, match=r"a\.jsonl cannot be read"):
        walk(data)


def test_links_to_files_and_a_linked_source_are_read(data, tmp_path):
    (tmp_path / "elsewhere.jsonl").write_text("{}")
    (data / "b.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    (data / ".git").mkdir()
    (data / ".git" / "config").touch()
    (tmp_path / "source").symlink_to(data)
    assert [path.name for path in walk(tmp_path / "source")] == ["a.jsonl", "b.jsonl"]
    assert walk(tmp_path / "nothing") == []


def _edited_and_put_back(file):
    old, status = file.read_bytes(), file.stat()
    file.write_bytes(b"other")
    file.write_bytes(old)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replaced_and_put_back(file):
    file.rename(file.parent.parent / "kept")
    file.write_text("other")
    (file.parent.parent / "kept").rename(file)


def _added_and_removed(file):
    (file.parent / "new.jsonl").touch()
    (file.parent / "new.jsonl").unlink()


@pytest.mark.parametrize("change", [_edited_and_put_back, _replaced_and_put_back, _added_and_removed])
def test_stamps_show_what_was_put_back(data, change):
    before = stamps([data])
    settle_stamps(before)
    assert stamps([data]) == before
    change(data / "a.jsonl")
    assert stamps([data]) != before


def test_stamps_show_a_page_written_through_a_memory_map(tmp_path):
    """As far as the file system does: tmpfs keeps no time of it."""
    file = tmp_path / "a"
    file.write_bytes(bytes(8192))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as pages:
        pages[0] = 1
        before = stamps([file])
        settle_stamps(before)
        before = stamps([file])
        settle_stamps(before)
        pages[0] = 2
        pages.flush()
        assert stamps([file]) != before


def test_link_that_another_clone_makes_to_a_cached_file_is_no_change(tmp_path):
    cached = tmp_path / "cached"
    cached.write_text("a")
    cached.chmod(0o444)
    os.link(cached, data := tmp_path / "data")
    before = stamps([data])
    os.link(cached, tmp_path / "other")
    assert stamps([data]) == before
    data.chmod(0o644)
    assert stamps([data]) != before
