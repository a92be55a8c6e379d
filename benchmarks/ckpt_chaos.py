"""Crash the stages that train at every write of a checkpoint, and let ckpt-chaos (PyPI) judge what the next run does.

    python -m benchmarks.ckpt_chaos PROGRAM FOLDER [--stages pretrain sft dpo] [--max-points 30]

PROGRAM: ckpt-chaos, installed in an environment of its own. FOLDER: a copy of the repository in which `make run` has
finished; its params.yaml is changed so that a training has a dozen steps, each with a checkpoint, and its outs are
overwritten. Prints a table of verdicts; exits with 1 if one is HARD_FAIL, SILENT_DIVERGENCE or LOST_WORK. A crash point
costs two starts of a stage: 20 seconds on an idle machine.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

STAGES = ("pretrain", "sft", "dpo")
SMALL = {"budget_flops": 4e9, "sft": {"batch_tokens": 16384}, "dpo": {"batch_pairs": 128}}
FAILURES = "HARD_FAIL,SILENT_DIVERGENCE,LOST_WORK,CONTROL_FAIL"
SCRIPT = """\
cd {folder} || exit 1
export VERDICT_CHECKPOINTS="$1/checkpoints" VERDICT_CHECKPOINT_SECONDS=0.001 VERDICT_KEEP_CHECKPOINTS=1
export VERDICT_TRACKING=off
{python} -m stages.{stage} && cp out/{stage}/model.safetensors "$1/final.safetensors"
"""


def prepare(folder: Path) -> None:
    """Make the trainings of ``folder`` short."""
    yaml, path = YAML(), folder / "params.yaml"
    params = yaml.load(path)
    for key, value in SMALL.items():
        params[key].update(value) if isinstance(value, dict) else params.update({key: value})
    yaml.dump(params, path)
    environment = os.environ | {"VERDICT_TRACKING": "off"}
    subprocess.run([sys.executable, "-m", "stages.size"], cwd=folder, env=environment, check=True)


def judge(program: str, folder: Path, stage: str, most: int) -> bool:
    """Crash ``stage`` at up to ``most`` points; return whether no verdict is a failure."""
    work = runs(folder, stage)
    shutil.rmtree(work, ignore_errors=True)  # ckpt-chaos wants a new folder
    work.parent.mkdir(parents=True, exist_ok=True)
    script = work.with_suffix(".sh")
    script.write_text(SCRIPT.format(folder=folder.absolute(), python=sys.executable, stage=stage))
    done = subprocess.run(
        [
            program, "run", "--work", work, "--max-points", str(most), "--modes", "before,torn,term",
            "--timeout", "1800", "--grace", "60", "--result-file", "{out}/final.safetensors",
            "--step-regex", r"resuming from step (\d+)", "--fail-on", FAILURES,
            "--checkpoint-glob", f"{{out}}/checkpoints/{stage}/*/checkpoint-*", "--ckpt-ignore-size",
            "--", "sh", script, "{out}",
        ],
        check=False,
    )  # fmt: skip
    return done.returncode == 0


def runs(folder: Path, stage: str) -> Path:
    return folder.absolute() / ".verdict" / "chaos" / stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--max-points", type=int, default=30)
    asked = parser.parse_args()
    prepare(asked.folder)
    passed = [judge(asked.program, asked.folder, stage, asked.max_points) for stage in asked.stages]
    named = [f"{stage}={runs(asked.folder, stage)}" for stage in asked.stages]
    subprocess.run([asked.program, "scoreboard", *named], check=False)
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
