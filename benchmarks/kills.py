"""Whether a run that is killed, at whatever moment and in whatever way, ends in the same bytes when it is begun again.

    python -m benchmarks.kills FOLDER [KILLS] [SEED]

Clones the last commit into FOLDER with the small data of tests/test_pipeline.py and a budget at which most of the time
is training. Runs it once undisturbed, then again and again from nothing: a seeded signal (SIGKILL, SIGTERM, SIGINT) to
a seeded target (the stage, its `dvc`, the flow, the flow's process group, everything), and the same command again, at
once or some seconds later, until it is done. Every kill is a line of FOLDER/kills.jsonl, from which the same command
goes on. Three of five kills are aimed at a stage that has published a checkpoint since it began.

Prints a table and exits with 1 unless all results are the same, no run was refused, no process is left after 40 s, no
MLflow run is RUNNING, no traceback was printed, and a third of the KILLS (60) met pretrain, sft or dpo after one of
its checkpoints. An hour on two cores that do nothing else.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ruamel.yaml import YAML

from stages.contract.process.lifetime import started

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TARGETS = ("stage", "dvc", "flow", "group", "everything")
TRAINED = ("pretrain", "sft", "dpo")
FLOW = (sys.executable, "-m", "flows.pipeline")
MARK = "VERDICT_KILLS"  # in the environment of everything that a run starts
ORPHAN_SECONDS, END_SECONDS, RUN_SECONDS = 40, 75, 3600
REFUSED = re.compile(r"^error: |still at work here|already running|another DVC process", re.M)


@dataclass
class Kill:
    """One signal, and the end of the run it went to."""

    number: int
    sent: str
    target: str
    aimed: bool  # at a stage after a checkpoint
    pause: float  # seconds until the next run
    stage: str = "none"
    after_checkpoint: bool = False
    code: int | None = None
    faults: list[str] = field(default_factory=list)


def prepare(folder: Path) -> Path:
    """A clone of the last commit with a little data, whose training takes longer than its imports."""
    from tests.test_pipeline import little

    clone = folder / "clone"
    if not clone.exists():
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        little(clone)
        yaml = YAML()
        params = yaml.load(clone / "params.yaml")
        params["budget_flops"] = 1.0e11
        params["sft"].update(epochs=8)
        params["dpo"].update(epochs=4)
        params["eval"].update(limit=1, validation_bytes=5000)
        yaml.dump(params, clone / "params.yaml")
        commit = ["git", "-C", str(clone), "-c", "user.name=kills", "-c", "user.email=kills@localhost", "commit"]
        subprocess.run([*commit, "-qam", "A little data"], check=True)
    return clone


def start(clone: Path, log: Path) -> subprocess.Popen:
    """The flow in ``clone``, in a process group of its own; its output is added to ``log``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    kept |= {MARK: str(clone), "VERDICT_CHECKPOINT_SECONDS": "0.5", "PREFECT_HOME": str(clone.parent / "prefect")}
    kept |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    with log.open("a") as out:
        return subprocess.Popen(
            FLOW, cwd=clone, env=kept, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )


def processes(clone: Path) -> dict[int, str]:
    """id -> command of all that runs in ``clone``."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={clone}".encode() in (path / "environ").read_bytes():
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:  # ended
            continue
    return {pid: command for pid, command in found.items() if command}


def stages(clone: Path) -> dict[int, str]:
    """id -> name of the stages at work; of a stage in a shell the stage itself, which is the younger."""
    named = {pid: re.search(r"-m stages\.(\w+)$", command) for pid, command in processes(clone).items()}
    return {pid: match[1] for pid, match in named.items() if match}


def training(clone: Path) -> tuple[int, str] | None:
    """id and name of a stage that has published a checkpoint since it began."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    for pid, name in sorted(stages(clone).items(), reverse=True):
        manifests = (clone / ".dvc" / "cache-checkpoints" / name).glob("*/checkpoint-*/manifest.json")
        with contextlib.suppress(OSError, ValueError):  # ended, or replaced
            begun = booted + int(started(pid)) / os.sysconf("SC_CLK_TCK")
            if name in TRAINED and any(path.stat().st_mtime > begun for path in manifests):
                return pid, name
    return None


def sessions(clone: Path, stage: int) -> list[int]:
    """The `dvc` that started process ``stage``: the leader of the session it is in."""
    leader = os.getsid(stage)
    return [leader] if leader in processes(clone) else []


def aimed_at(clone: Path, process: subprocess.Popen, kill: Kill) -> list[int]:
    """The ids of what ``kill`` goes to, and note in it which stage is at work."""
    trained = training(clone)
    pid, kill.stage = trained or max(stages(clone).items(), default=(0, "none"))
    kill.after_checkpoint = trained is not None
    if kill.target == "everything":
        return [*processes(clone)]
    if kill.target == "group":
        return [pid for pid in processes(clone) if os.getpgid(pid) == process.pid]
    if kill.target == "flow" or not pid:
        return [process.pid]
    return [pid] if kill.target == "stage" else sessions(clone, pid)


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.2)
    return met


def strike(clone: Path, process: subprocess.Popen, kill: Kill, rng: random.Random) -> bool:
    """Wait for the moment and send the signal; False if the run was done before."""
    moment = time.monotonic() + rng.uniform(0.3, 45)
    if kill.aimed:
        wait(lambda: process.poll() is not None or training(clone) is not None, RUN_SECONDS)
        moment = time.monotonic() + rng.uniform(0, 5)
    if wait(lambda: process.poll() is not None or time.monotonic() > moment, RUN_SECONDS) and process.poll() is None:
        for pid in aimed_at(clone, process, kill):
            with contextlib.suppress(OSError):  # ended
                os.kill(pid, signal.Signals[kill.sent])
        return True
    return False


def disturb(clone: Path, process: subprocess.Popen, kills: list[Kill], seed: int) -> list[Kill]:
    """Send ``process`` the first of ``kills``, the next too while it goes on by its stages' retries, until it ends.

    Returns:
        those that were sent, which ``kills`` has no more, with the exit code.
    """
    sent: list[Kill] = []
    goes_on = True
    while goes_on and kills and strike(clone, process, kills[0], random.Random(f"{seed}-{kills[0].number}")):
        sent.append(kills.pop(0))
        goes_on = sent[-1].target in ("stage", "dvc") and sent[-1].stage != "none"
        wait(lambda: process.poll() is not None, 3 if goes_on else 0)
    code = ended(process, RUN_SECONDS if goes_on else END_SECONDS)
    if code is None:
        sent[-1].faults.append("did not end in time")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for kill in sent:
        kill.code = code
    return sent


def ended(process: subprocess.Popen, seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def orphans(clone: Path) -> list[str]:
    """What still runs 40 s after the last run has ended; the process that sends metrics ends by itself, later."""

    def left() -> list[str]:
        return [command for command in processes(clone).values() if "contract.shipper" not in command]

    wait(lambda: not left(), ORPHAN_SECONDS)
    return left()


def digest(clone: Path) -> str:
    """Of what dvc.lock says; its stages stand in the order in which they ended, and some run at once."""
    lock = YAML(typ="safe").load(clone / "dvc.lock")
    return hashlib.sha256(json.dumps(lock, sort_keys=True).encode()).hexdigest()


def clean(clone: Path) -> None:
    """Nothing that a run made is left but compiled code and MLflow's database."""
    for name in ("out", "reports", ".dvc/cache", ".dvc/cache-checkpoints", ".dvc/tmp", "dvc.lock"):
        path = clone / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def running(clone: Path) -> list[str]:
    """Names of the MLflow runs that are RUNNING, once the process that sends has nothing more to send."""
    wait(lambda: not any("contract.shipper" in command for command in processes(clone).values()), 180)
    if not (clone / "mlflow.db").exists():
        return ["no mlflow.db"]
    with sqlite3.connect(clone / "mlflow.db") as database:
        return [name for (name,) in database.execute("select name from runs where status = 'RUNNING'")]


def chain(clone: Path, kills: list[Kill], seed: int, record: Callable[[Kill], None], whole: str) -> None:
    """From nothing to the result, over the first of ``kills`` that find something to kill."""
    clean(clone)
    log, code = clone.parent / "runs.log", None
    while code != 0:
        process, begun = start(clone, log), log.stat().st_size
        sent = disturb(clone, process, kills, seed)
        code, said = process.returncode, log.read_text(errors="replace")[begun:]
        if not sent and code != 0:
            sys.exit(f"an undisturbed run ended with {code}; see {log}")
        if not sent:
            break
        last = sent[-1]
        last.faults += ["traceback"] * ("Traceback" in said)
        last.faults += ["refused, or an error"] * bool(code == 1 and REFUSED.search(said))
        last.faults += ["OTHER BYTES"] * (code == 0 and digest(clone) != whole)
        if last.number % 4 == 0:
            last.faults += [f"left: {command}" for command in orphans(clone)]
        for kill in sent:
            record(kill)
        time.sleep(last.pause if code else 0)
    if digest(clone) != whole:
        sys.exit(f"OTHER BYTES; see {log}")


def drawn(seed: int, count: int) -> list[Kill]:
    """The kills of ``seed``: every signal to every target about as often as any other."""
    rng = random.Random(seed)
    pairs = [(number.name, target) for number in SIGNALS for target in TARGETS]
    chosen = [pair for _ in range(count // len(pairs) + 1) for pair in rng.sample(pairs, len(pairs))][:count]
    return [
        Kill(k, sent, target, aimed=rng.random() < 0.6, pause=rng.choice([0.0, 0.0, 10.0]))
        for k, (sent, target) in enumerate(chosen)
    ]


def table(kills: list[Kill], clone: Path) -> bool:
    """Print what came of the ``kills``; whether nothing is wrong."""
    met = Counter((kill.target, kill.sent) for kill in kills)
    print("target      " + "".join(f"{number.name:>9}" for number in SIGNALS))
    for target in TARGETS:
        print(f"{target:12}" + "".join(f"{met[target, number.name]:9}" for number in SIGNALS))
    print("stages met: " + ", ".join(f"{name} {n}" for name, n in Counter(k.stage for k in kills).most_common()))
    between, wanted = sum(kill.after_checkpoint for kill in kills), len(kills) // 3
    faults = [f"kill {k.number} ({k.sent} to {k.target}, {k.stage}): {fault}" for k in kills for fault in k.faults]
    faults += [f"process left: {command}" for command in orphans(clone)]
    faults += [f"MLflow run left RUNNING: {name}" for name in running(clone)]
    print(f"{len(kills)} kills, {between} after a checkpoint of {', '.join(TRAINED)} (wanted: {wanted})")
    print("\n".join(faults) or "0 differing results, 0 refused runs, 0 tracebacks, 0 orphans, 0 runs left RUNNING")
    return not faults and between >= wanted


def main(folder: Path, count: int, seed: int) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    clone, records, whole = prepare(folder), folder / "kills.jsonl", folder / "whole"
    if not whole.exists():
        clean(clone)
        begin = time.monotonic()
        if ended(start(clone, folder / "runs.log"), RUN_SECONDS) != 0:
            sys.exit(f"the undisturbed run failed; see {folder / 'runs.log'}")
        print(f"undisturbed: {time.monotonic() - begin:.0f} s", flush=True)
        whole.write_text(digest(clone))
    done = [Kill(**json.loads(line)) for line in records.read_text().splitlines()] if records.exists() else []

    def record(kill: Kill) -> None:
        done.append(kill)
        with records.open("a") as out:
            out.write(json.dumps(asdict(kill)) + "\n")
        met = f"{kill.stage}{' after a checkpoint' * kill.after_checkpoint}"
        print(f"{kill.number:3} {kill.sent} to {kill.target}, {met}: {kill.code} {'; '.join(kill.faults)}", flush=True)

    kills = drawn(seed, count)[len(done) :]
    while kills:
        chain(clone, kills, seed, record, whole.read_text())
    chain(clone, [], seed, record, whole.read_text())
    return 0 if table(done, clone) else 1


if __name__ == "__main__":
    words = sys.argv[1:]
    if not words or words[0].startswith("-") or not all(word.isdigit() for word in words[1:]):
        sys.exit(__doc__)
    sys.exit(main(Path(words[0]).absolute(), int(words[1]) if words[1:] else 60, int(words[2]) if words[2:] else 19))
