"""Two clones and what they share: a folder, a server that speaks S3, or one reached by SSH."""

import shutil
import subprocess
import sys

import pytest
from dvc.repo import Repo

from flows import cli
from flows.execution.remote import restore_and_plan
from tests.flows.conftest import edit, free_port, own_lines


def set_remote(root, *settings):
    """Write what `dvc remote` would, of which each command takes a second."""
    with (root / ".dvc/config").open("a") as config:
        config.write("    remote = team\n['remote \"team\"']\n" + "".join(f"    {line}\n" for line in settings))


def push(root):
    with Repo(str(root)) as repo:
        repo.push(run_cache=True)


def git(root, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def s3():
    """The endpoint of an empty S3 server with the bucket `team`."""
    import boto3
    from moto.server import ThreadedMotoServer

    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    url = f"http://127.0.0.1:{port}"
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket="team")
    yield url
    server.stop()


@pytest.fixture(scope="module")
def ssh(tmp_path_factory):
    """The port and the client's key of a server that speaks SFTP."""
    import asyncio
    import threading

    import asyncssh

    folder, port = tmp_path_factory.mktemp("ssh"), free_port()
    for name in ("host", "client"):
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(folder / name)
    asyncssh.read_private_key(folder / "client").write_public_key(folder / "authorized")
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def listen():
        keys = {"server_host_keys": [folder / "host"], "authorized_client_keys": str(folder / "authorized")}
        return await asyncssh.listen("127.0.0.1", port, sftp_factory=True, **keys)

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(20)
    yield port, folder / "client"
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)


@pytest.fixture
def pushed(request, built, tmp_path, monkeypatch):
    """A repository with everything up to date, a data file that DVC tracks, and all of it pushed."""
    if request.param == "s3":
        settings = ["url = s3://team/dvc", f"endpointurl = {request.getfixturevalue('s3')}"]
        for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
    elif request.param == "ssh":
        port, key = request.getfixturevalue("ssh")
        settings = [f"url = ssh://me@127.0.0.1:{port}{tmp_path}/shared", f"keyfile = {key}", "allow_agent = false"]
    else:
        settings = [f"url = {tmp_path}/shared"]
    set_remote(built, *settings)
    (built / ".gitignore").write_text("/*.txt\n/.dvc/cache\n/.dvc/tmp\n")
    with Repo(str(built)) as repo:
        repo.add(str(built / "data.txt"))
    git(built, "add", "-A")
    git(built, "commit", "-qm", "all")
    push(built)
    return built


def clone(pushed):
    other = pushed.parent / "clone"
    git(pushed, "clone", "-q", str(pushed), str(other))
    return other


def run(root, monkeypatch, capfd, *arguments):
    """What the flow printed in the repository at ``root``."""
    monkeypatch.chdir(root)
    code = cli.main(list(arguments))
    said = capfd.readouterr()
    assert code == 0, said.out + said.err
    return said


@pytest.mark.parametrize("pushed", ["folder", "s3", "ssh"], indirect=True)
def test_a_second_machine_computes_nothing(pushed, monkeypatch, capfd):
    other = clone(pushed)
    assert not list(other.glob("*.txt"))
    said = run(other, monkeypatch, capfd)
    assert "Plan: 0 of 4 stages to run, 0 cached, 4 restored\n" in said.out and "  upper   restored\n" in said.out
    for path in pushed.glob("*.txt"):
        assert (other / path.name).read_bytes() == path.read_bytes()
    git(other, "diff", "--exit-code")
    assert "Plan: 0 of 4 stages to run, 4 cached\n" in run(other, monkeypatch, capfd).out


@pytest.mark.parametrize("pushed", ["s3"], indirect=True)
def test_results_of_another_machine_are_not_computed_again(pushed, monkeypatch, capfd, api):
    monkeypatch.setenv("PREFECT_API_URL", api)
    edit(pushed / "params.yaml", "limit: 100", "limit: 99")
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=pushed, check=True)
    push(pushed)
    git(pushed, "checkout", "-q", ".")
    other = clone(pushed)
    (other / "upper.txt").write_text("half\n")  # what a killed stage left; nobody is asked whether it may go
    said = run(other, monkeypatch, capfd, "-S", "eval.limit=99")
    assert own_lines(said.err) == []
    assert "upper   run" in said.out and "eval.limit changed" in said.out and "2 restored" in said.out
    assert "Up to date (ran: 0, cached: 4)" in said.out, said.out


@pytest.mark.parametrize("pushed", ["folder"], indirect=True)
def test_stage_without_run_cache_leaves_the_remote_in_use(pushed, monkeypatch, capfd, api):
    monkeypatch.setenv("PREFECT_API_URL", api)
    other = clone(pushed)
    with (other / "dvc.yaml").open("a") as file:
        file.write("  told:\n    cmd: echo told\n    deps: [report.txt]\n")
    said = run(other, monkeypatch, capfd)
    assert own_lines(said.err) == [] and "does not answer" not in said.out
    assert "Up to date (ran: 1, cached: 4)" in said.out, said.out


@pytest.mark.parametrize("pushed", ["folder"], indirect=True)
def test_only_missing_outs_are_restored(pushed, monkeypatch, capfd):
    other = clone(pushed)
    run(other, monkeypatch, capfd)
    shutil.rmtree(other / ".dvc" / "cache")
    (other / "report.txt").write_text("edited\n")
    (other / "lines.txt").unlink()
    assert restore_and_plan(other, (), (), pytest.fail)[0] == ["lines"]
    assert (other / "report.txt").read_text() == "edited\n"


def test_a_remote_that_does_not_answer_costs_a_line(built, tmp_path, monkeypatch, capfd, api):
    monkeypatch.setenv("PREFECT_API_URL", api)
    set_remote(built, "url = s3://team/dvc", f"endpointurl = http://127.0.0.1:{free_port()}", "connect_timeout = 1")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "a")
    edit(built / "dvc.yaml", "cat lines.txt upper.txt", "cat upper.txt lines.txt")
    (built / "report.txt").unlink()
    said = run(built, monkeypatch, capfd)
    warnings = [line for line in said.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "the DVC remote team (s3://team/dvc) does not answer, so nothing" in warnings[0]
    assert "Up to date (ran: 1, cached: 3)" in said.out and (built / "report.txt").exists()
