import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from flows import repro
from flows.supervise import STOPPED
from tests.flows.conftest import alive, wait_for


@pytest.fixture
def lifeline():
    read, write = os.pipe()
    yield read
    os.close(write)
    os.close(read)


def reproduced(root, lifeline, *arguments, **env):
    """Exit code and output of `dvc repro`."""
    begun = repro.begin(["repro", *arguments], root, dict(os.environ, **env), 5, 0, lifeline)
    with open(begun.output) as output, open(begun.code) as code:
        return output.read(), code.read()


def server_of(pid: int) -> int:
    """The child of this process that ``pid`` descends from: how many shells are between depends on $SHELL."""
    while (parent := int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])) != os.getpid():
        pid = parent
    return pid


def test_dvcs_lines_and_the_commands_come_in_their_order(make_repo, lifeline):
    root = make_repo("stages:\n  a:\n    cmd: sh -c 'echo one; echo two >&2; echo $SAID'\n    outs: []\n")
    output, code = reproduced(root, lifeline, "a", SAID="three")
    lines = output.splitlines()
    assert code == "0" and lines[0] == "Running stage 'a':" and lines[2:5] == ["one", "two", "three"]
    assert "four" in reproduced(root, lifeline, "a", SAID="four")[0]  # the environment of this call


def test_it_is_dvc_as_a_process_of_its_own(make_repo, lifeline):
    root = make_repo("stages:\n  a:\n    cmd: exit 7\n    deps: [data.txt]\n")
    apart = subprocess.run(["dvc", "repro", "a"], cwd=root, capture_output=True, text=True)
    assert reproduced(root, lifeline, "a") == (apart.stdout + apart.stderr, str(apart.returncode))


def test_several_at_once_and_after_the_server_was_killed(make_repo, lifeline):
    command = "sh -c 'echo $PPID > pid; while [ ! -e go ]; do sleep 0.1; done; cp data.txt out.txt'"
    roots = [
        make_repo(f"stages:\n  a:\n    cmd: {command}\n    deps: [data.txt]\n    outs: [out.txt]\n", f"toy{k}")
        for k in range(3)
    ]
    codes = {}
    threads = []

    def start(root):
        threads.append(threading.Thread(target=lambda: codes.update({root: reproduced(root, lifeline, "a")[1]})))
        threads[-1].start()
        return wait_for(lambda: (root / "pid").exists() and (root / "pid").read_text().strip())

    servers = {server_of(int(start(root))) for root in roots[:2]}
    assert len(servers) == 1
    os.kill(server := servers.pop(), signal.SIGKILL)
    wait_for(lambda: not alive(server))
    assert server_of(int(start(roots[2]))) != server
    for root in roots:
        (root / "go").touch()
    for thread in threads:
        thread.join(60)
    assert codes == dict.fromkeys(roots, "0") and all((root / "out.txt").read_text() == "a\nb\n" for root in roots)


def test_what_is_stopped_before_it_begins_does_not_begin(make_repo):
    root = make_repo("stages:\n  a:\n    cmd: sh -c 'sleep 3; touch ../ran'\n    deps: [data.txt]\n")
    read, write = os.pipe()
    os.close(write)
    begun = repro.begin(["repro", "a"], root, dict(os.environ), 60, 0, read)
    with open(begun.output) as output, open(begun.code) as code:
        assert (output.read(), code.read())[1] == str(STOPPED)
    os.close(read)
    assert not (root.parent / "ran").exists()


def test_the_server_ends_with_the_process_that_asks(make_repo):
    root = make_repo("stages:\n  a:\n    cmd: sh -c 'echo $PPID > pid'\n    deps: [data.txt]\n")
    (root / "ask.py").write_text(
        "import os, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from flows import repro\n"
        "begun = repro.begin(['repro', 'a'], Path(), dict(os.environ), 5, 0, os.pipe()[0])\n"
        "assert open(begun.code).read() == '0'\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run(["python", "ask.py", str(repro.HOUSE)], cwd=root)
    assert (root / "pid").exists()
    wait_for(lambda: str(root) not in cwds(), 20)


def cwds() -> list[str]:
    """The working directories of all processes that can be looked at."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            found.append(os.readlink(link))
        except OSError:
            continue
    return found
