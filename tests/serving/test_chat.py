"""The chat from a pipe and at a terminal: answers on stdout, errors in one line, exit codes."""

import io
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from serving import chat
from tests.serving.conftest import ANSWER

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def piped(monkeypatch, capsys):
    """Run the chat with lines of a pipe; return exit code, stdout, stderr."""

    def run(text, *arguments):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        code = chat.main([*map(str, arguments), "--temperature", "0", "--new-tokens", "8"])
        return code, *capsys.readouterr()

    return run


def test_each_line_of_a_pipe_is_a_question(piped, folder):
    assert piped("Hello?\n\nHello?\n", "--model", folder)[:2] == (0, f"{ANSWER}\n{ANSWER}\n")


def test_a_model_beside_gets_the_same_questions(piped, folder):
    _, out, _ = piped("Hello?\n", "--model", folder, "--beside", folder)
    assert out == f"[{folder}] {ANSWER}\n" * 2


def test_the_champion_is_checked_out_and_answers(piped, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr("flows.surroundings.settle_surroundings", asked.append)
    monkeypatch.setattr("flows.retraining.champion.check_out_champion", lambda root: asked.append(root) or folder)
    assert piped("Hello?\n", "--model", "champion")[:2] == (0, f"{ANSWER}\n")
    assert asked == [tmp_path, tmp_path]


def test_commands_change_the_conversation(piped, folder):
    code, out, _ = piped("/system Be brief.\n/temperature 0\n/reset\nHello?\n", "--model", folder)
    assert code == 0 and len(out.splitlines()) == 4


def test_a_path_is_a_question(piped, folder):
    assert piped("/etc/passwd?\n", "--model", folder)[0] == 0


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("", ["--model", "nowhere"], "error: nowhere: no such folder. --model takes a model folder"),
        ("", ["--top-p", "0"], "error: --top-p: 0 is not allowed. Use more than 0, at most 1."),
        ("", [], "error: no model in out/dpo, out/sft, out/pretrain. Run `make run` first"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(piped, tmp_path, monkeypatch, text, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, out, error = piped(text, *arguments)
    assert (code, out, error.count("\n")) == (1, "", 1) and error.startswith(said)


def test_an_unknown_command_is_refused(piped, folder):
    assert piped("/nope\n", "--model", folder)[::2] == (1, "error: /nope: no such command. /help lists them.\n")


def test_at_a_terminal_ctrl_c_asks_again_and_ctrl_d_ends(folder):
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "serving.chat", "--model", str(folder), "--temperature", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                               preexec_fn=_take_terminal)  # fmt: skip
    os.close(slave)
    read_until(master, b"Ctrl-D ends.\r\n> ")
    os.write(master, b"Hello?\n")
    read_until(master, ANSWER.encode() + b"\r\n> ")
    read_until(master, b"Ctrl-D ends.\r\n> ", press=b"\x03")
    os.write(master, b"/reset\n")
    read_until(master, b"forgotten.\r\n> ")
    os.write(master, b"\x04")
    assert process.wait(60) == 0
    os.close(master)


def _take_terminal():
    """Make the terminal on stdin that of this session, so that its Ctrl-C sends SIGINT."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_until(descriptor, end, press=b""):
    """Read up to ``end``; ``press`` keys every ten seconds: CPython may lose a Ctrl-C before select()."""
    said = b""
    for _ in range(12):
        os.write(descriptor, press)
        while select.select([descriptor], [], [], 10)[0]:
            said += os.read(descriptor, 1024)
            if end in said:
                return
    pytest.fail(f"{end!r} did not follow {said!r}")
