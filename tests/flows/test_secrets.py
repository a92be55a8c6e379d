"""No password, token or webhook is written or shown, whatever fails."""

import contextlib
import threading
from pathlib import Path

from stages.contract.tracking import shipper
from tests.flows.conftest import PATIENCE, free_port
from tests.flows.execution.test_pipeline import start

SECRET = "pL4nt-3d"
MAY_HOLD_IT = (".git/config", ".dvc/config.local")  # the person's own settings
DVC_YAML = """
stages:
  leak:
    cmd: sh -c 'echo no answer from $MLFLOW_TRACKING_URI; echo login $PREFECT_API_AUTH_STRING; exit 3'
    deps: [data.txt]
    outs: [out.txt]
"""


def commands() -> dict[int, str]:
    """Return the command line of every process of this machine."""
    lines = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines[int(path.parent.name)] = path.read_text(errors="replace")
    return lines


def test_a_planted_secret_is_found_nowhere(make_repo, api, home, monkeypatch, capfd):
    root, dead = make_repo(DVC_YAML), free_port()
    address = f"http://joe:{SECRET}@127.0.0.1:{dead}"
    (root / ".dvc/config.local").write_text(
        f"[core]\n    remote = team\n['remote \"team\"']\n    url = {address}/dvc\n"
    )
    with (root / ".git/config").open("a") as config:
        config.write(f'[remote "origin"]\n\turl = https://{SECRET}@127.0.0.1:{dead}/a.git\n')
    settings = {
        "MLFLOW_TRACKING_URI": address, "MLFLOW_TRACKING_TOKEN": SECRET, "PREFECT_API_KEY": SECRET,
        "PREFECT_API_AUTH_STRING": f"admin:{SECRET}", "AWS_SECRET_ACCESS_KEY": SECRET,
        "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://joe:{SECRET}@127.0.0.1:{dead}/prefect",
        "VERDICT_ALERT_URLS": f"json://127.0.0.1:{dead}/services/{SECRET} mailto://joe:{SECRET}@127.0.0.1:{dead}?to=a@x.org",
        "http_proxy": f"http://joe:{SECRET}@127.0.0.1:{dead}", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    shown, over = {}, threading.Event()
    watch = threading.Thread(target=lambda: [shown.update(commands()) for _ in iter(lambda: over.wait(0.1), True)])
    watch.start()
    process = start(root, home, PREFECT_API_URL=api, **settings)
    out, err = process.communicate(timeout=2 * PATIENCE)
    over.set()
    watch.join()
    assert process.returncode == 1, out + err
    assert "no answer from http://127.0.0.1" in out
    assert "login ***" in out
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(shipper, "GIVE_UP_SECONDS", 0.0)
    shipper._serve(root)  # in this process: the one of its own gives way to everything
    log = "".join(capfd.readouterr())
    assert f"MLflow at http://127.0.0.1:{dead} does not answer" in log
    assert SECRET not in out + err + log + "".join(shown.values())
    files = [path for folder in (root, home) for path in folder.rglob("*") if path.is_file()]
    bad = [str(path) for path in files if SECRET.encode() in path.read_bytes()]
    assert [path for path in bad if not path.endswith(MAY_HOLD_IT)] == []
