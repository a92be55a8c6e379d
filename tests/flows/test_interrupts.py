"""A signal while a flow's program imports."""

import os
import signal
import subprocess
import sys
import time

import pytest

from flows import interrupts
from tests.flows.conftest import PATIENCE, REPOSITORY

SENDER = "import os, signal\nos.kill(os.getpid(), signal.{})\nimport time\ntime.sleep(600)\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", ["pipeline", "retrain", "sweep", "rollback", "serve"])
def test_signal_during_imports_is_one_line_if_inherited_ignored(tmp_path, program, number):
    (tmp_path / "ruamel").mkdir()
    (tmp_path / "ruamel" / "__init__.py").write_text(SENDER.format(number.name))
    options = ["-S", "seed=1,2", "--metric", "eval.x"] if program == "sweep" else []
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    before = signal.signal(number, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", f"flows.{program}", *options],
            cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    finally:
        signal.signal(number, before)
    assert process.communicate(timeout=PATIENCE)[0] == "Interrupted.\n"
    assert process.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_a_destructor_is_not_lost(number):
    class Sender:
        def __del__(self):
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt), interrupts.raised():
        Sender()
        time.sleep(10)
    assert interrupts.HEARD.is_set()
