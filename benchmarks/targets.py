"""A forecast from small trainings, written down before a larger one, and what the larger one then reached.

    python -m benchmarks.targets PACKED RESULTS rungs      trains the rungs, several on each GPU at a time
    python -m benchmarks.targets PACKED RESULTS forecast   fits them, writes a forecast of each target (a CPU is enough)
    python -m benchmarks.targets PACKED RESULTS targets    trains the targets, one on each GPU, and compares

PACKED: a folder with tokenizer/, train/ and validation/, as the stages `tokenizer` and `pack` write them. RESULTS: a
folder; what is there already is not trained again. The trainings are the stage `pretrain`'s: its trainer, rates,
batches and validation rows. FLOPS (the environment variable) is another budget of the targets.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stages.contract import Run
from stages.contract.params import Params, Rung
from stages.contract.tracking.spool import NoSpool
from stages.corpus.tokens.packed_rows import load_rows
from stages.corpus.tokens.vocabulary import vocabulary_size
from stages.scaling.budget import rung_plan
from stages.scaling.ladder import POINT, Point, Prediction, fit_ladder, predict, read_points
from stages.scaling.plan import Plan
from verdict.claims import overridden

FLOPS = float(os.environ.get("FLOPS", 1.02e17))  # of a target; the nearest whole number of steps has 1e17 and more
RUNGS = [
    Rung(share=share, tokens_per_parameter=ratio)
    for share, ratio in ((0.06, 1), (0.02, 0.5), (0.01, 2), (0.005, 1), (0.0025, 0.5), (0.0025, 2))
]
TARGETS = [Rung(share=1, tokens_per_parameter=ratio) for ratio in (1.0,)]
AT_ONCE = 6  # rungs on a GPU: their kernels are small, and the host keeps none of them busy
SAME = {"trainer.optimizer": "adamw", "sizing.batch_tokens": "auto", "sizing.head_dim": "auto", "sizing.max_epochs": 6}


def planned(packed: Path, rung: Rung) -> tuple[Params, Plan]:
    """Parameters and plan of a rung, or of a target, whose share is all."""
    rows = load_rows(packed / "train")
    params = overridden(SAME | {"budget_flops": FLOPS, "pack.row_tokens": int(rows.tokens.shape[1])})
    return params, rung_plan(params, rung, vocabulary_size(packed / "tokenizer"), int(rows.filled.sum()))


def place(results: Path, rung: Rung) -> Path:
    """The folder of a training's point."""
    return results / "points" / f"{rung.share}-{rung.tokens_per_parameter}"


def train(packed: Path, results: Path, rung: Rung) -> None:
    """Train a rung or a target, and write its point and its seconds."""
    from stages.scaling.shapes import Shape
    from stages.trainer.loop.history import final
    from stages.trainer.loop.pretraining import VALIDATION_ROWS, PretrainWork, pretrain
    from stages.trainer.loop.rows import PackedRows
    from stages.trainer.model import models
    from stages.trainer.plan import hardware, recipe

    (params, plan), machine, folder = planned(packed, rung), hardware.detect_hardware(), place(results, rung)
    rows = PackedRows(load_rows(packed / "train")), PackedRows(load_rows(packed / "validation"), VALIDATION_ROWS)
    one = all(part.one_document for part in rows)
    chosen = recipe.resolve(machine, Shape.of(plan.model), plan.batch_rows, params.pack.row_tokens, params.trainer, one)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        run = Run("pretrain", params, folder, folder, Path(scratch), NoSpool())
        work = PretrainWork(run, plan, chosen, machine, *rows)
        _, history = pretrain(work, models.load_tokenizer(packed / "tokenizer"), None)
    folder.mkdir(parents=True, exist_ok=True)
    Point.of(rung, plan, final(history, "eval_loss", 0)).write(folder)
    (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - began))
    print((folder / POINT).read_text())


def train_missing(packed: Path, results: Path, wanted: Sequence[Rung], at_once: int) -> None:
    """Train what has no point yet, each in a process of this module, ``at_once`` of them on each GPU."""
    import torch

    places = list(range(max(1, torch.cuda.device_count()))) * at_once

    def one(rung: Rung) -> None:
        gpu = places.pop(0)
        env = os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu), "VERDICT_CHECKPOINT_SECONDS": "1e9"}
        log = results / f"{place(results, rung).name}.log"
        words = [str(packed), str(results), "point", str(rung.share), str(rung.tokens_per_parameter)]
        with log.open("w") as out:
            subprocess.run([sys.executable, "-m", "benchmarks.targets", *words], env=env, stdout=out, stderr=out)
        if not (place(results, rung) / POINT).exists():
            print(f"{log}: {log.read_text().strip()[-500:]}", flush=True)
        places.append(gpu)

    results.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(len(places)) as pool:
        list(pool.map(one, [rung for rung in wanted if not (place(results, rung) / POINT).exists()]))


def rungs(packed: Path, results: Path) -> None:
    """Train the rungs."""
    train_missing(packed, results, RUNGS, AT_ONCE)
    points = read_points(RUNGS, results / "points")
    for point in points:
        print(point)
    print(f"{len(points)} of {len(RUNGS)} rungs, {sum(p.flops for p in points) / FLOPS:.1%} of a target's FLOPs")


def forecast(packed: Path, results: Path) -> None:
    """Fit a law to the rungs and write what it predicts of each target."""
    points = read_points(RUNGS, results / "points")
    forecaster = fit_ladder(points)
    for target in TARGETS:
        _, plan = planned(packed, target)
        prediction = predict(points, forecaster, plan)
        prediction.write(results / f"forecast-{target.tokens_per_parameter}.json")
        shape = f"{plan.parameters:,} parameters, {plan.tokens:,} tokens ({plan.epochs:.2f} epochs)"
        print(f"{target.tokens_per_parameter:g} tokens a parameter: {shape}, {plan.flops:.4g} FLOPs")
        print(f"  {prediction.line()}")


def targets(packed: Path, results: Path) -> None:
    """Train the targets and compare them with their forecasts."""
    train_missing(packed, results, TARGETS, 1)
    for target in TARGETS:
        said = Prediction.read(results / f"forecast-{target.tokens_per_parameter}.json")
        for point in read_points([target], results / "points"):
            seconds = json.loads((place(results, target) / "seconds.json").read_text())
            inside = said.low <= point.validation_loss <= said.high
            print(
                f"{said.line()}\n{point.flops:.4g} FLOPs reached {point.validation_loss:.4f}: forecast "
                f"{said.loss / point.validation_loss - 1:+.2%}, {'inside' if inside else 'OUTSIDE'}; {seconds:.0f} s"
            )


SECTIONS = {"rungs": rungs, "forecast": forecast, "targets": targets}


def main() -> None:
    words = sys.argv[1:]
    if len(words) == 5 and words[2] == "point":
        rung = Rung(share=float(words[3]), tokens_per_parameter=float(words[4]))
        train(Path(words[0]), Path(words[1]), rung)
    elif len(words) == 3 and words[2] in SECTIONS:
        SECTIONS[words[2]](Path(words[0]), Path(words[1]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
