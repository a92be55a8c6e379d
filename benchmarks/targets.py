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
from dataclasses import asdict
from pathlib import Path

from stages.contract import Run
from stages.contract.params import Params, Rung
from stages.contract.tracking.spool import NoSpool
from stages.corpus.tokens.packed_rows import load_rows
from stages.corpus.tokens.vocabulary import vocabulary_size
from stages.scaling.budget import plan_of, rung_plan
from stages.scaling.ladder import POINT, Point, fit_ladder, predict, read_points
from stages.scaling.plan import Plan
from verdict.claims import overridden

FLOPS = float(os.environ.get("FLOPS", 1.02e17))  # of a target; the nearest whole number of steps has 1e17 and more
RUNGS = [
    Rung(share=share, tokens_per_parameter=ratio)
    for share, ratio in ((0.06, 1), (0.02, 0.5), (0.01, 2), (0.005, 1), (0.0025, 0.5), (0.0025, 2))
]
TARGETS = (1.0,)  # tokens a parameter
AT_ONCE = 6  # rungs on a GPU: their kernels are small, and the host keeps none of them busy
SAME = {"trainer.optimizer": "adamw", "sizing.batch_tokens": "auto", "sizing.head_dim": "auto", "sizing.max_epochs": 6}


def planned(packed: Path) -> tuple[Params, int, int]:
    """Parameters of the trainings, size of the vocabulary, tokens of the data."""
    rows = load_rows(packed / "train")
    params = overridden(SAME | {"budget_flops": FLOPS, "pack.row_tokens": int(rows.tokens.shape[1])})
    return params, vocabulary_size(packed / "tokenizer"), int(rows.filled.sum())


def target_plan(packed: Path, ratio: float) -> Plan:
    """The plan of FLOPS and ``ratio`` tokens a parameter."""
    params, vocabulary, unique = planned(packed)
    sizing = params.sizing.model_copy(update={"tokens_per_parameter": ratio})
    return plan_of(params.model_copy(update={"sizing": sizing}), vocabulary, unique)


def rung_plans(packed: Path, rung: Rung) -> Plan:
    """The plan of a rung."""
    return rung_plan(planned(packed)[0], rung, *planned(packed)[1:])


def train(packed: Path, folder: Path, rung: Rung, plan: Plan) -> None:
    """Train ``plan`` and write its point and its seconds to ``folder``."""
    from stages.scaling.shapes import Shape
    from stages.trainer.loop.history import final
    from stages.trainer.loop.pretraining import VALIDATION_ROWS, PretrainWork, pretrain
    from stages.trainer.loop.rows import PackedRows
    from stages.trainer.model import models
    from stages.trainer.plan import hardware, recipe

    params, machine = planned(packed)[0], hardware.detect_hardware()
    rows = PackedRows(load_rows(packed / "train")), PackedRows(load_rows(packed / "validation"), VALIDATION_ROWS)
    one = all(part.one_document for part in rows)
    chosen = recipe.resolve(machine, Shape.of(plan.model), plan.batch_rows, params.pack.row_tokens, params.trainer, one)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        run = Run("pretrain", params, folder, folder, Path(scratch), NoSpool())
        _, history = pretrain(
            PretrainWork(run, plan, chosen, machine, *rows), models.load_tokenizer(packed / "tokenizer"), None
        )
    folder.mkdir(parents=True, exist_ok=True)
    Point.of(rung, plan, final(history, "eval_loss", 0)).write(folder)
    (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - began))


def everywhere(jobs: Sequence[list[str]], at_once: int) -> None:
    """Run ``jobs``, each a process of this module on one GPU, ``at_once`` of them on each GPU."""
    import torch

    gpus = max(1, torch.cuda.device_count())
    places = list(range(gpus)) * at_once

    def one(arguments: list[str]) -> None:
        place = places.pop(0)
        env = os.environ | {"CUDA_VISIBLE_DEVICES": str(place), "VERDICT_CHECKPOINT_SECONDS": "1e9"}
        log = Path(arguments[1], f"{arguments[3]}-{arguments[4]}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as out:
            subprocess.run([sys.executable, "-m", "benchmarks.targets", *arguments], env=env, stdout=out, stderr=out)
        print(f"{' '.join(arguments[2:])}: {log.read_text().strip().splitlines()[-1]}", flush=True)
        places.append(place)

    with ThreadPoolExecutor(len(places)) as pool:
        list(pool.map(one, jobs))


def rungs(packed: Path, results: Path) -> None:
    """Train all rungs that have no point yet, the longest first."""
    waiting = [r for r in RUNGS if not (results / "rungs" / f"{r.share}-{r.tokens_per_parameter}" / POINT).exists()]
    jobs = [[str(packed), str(results), "rung", str(r.share), str(r.tokens_per_parameter)] for r in waiting]
    everywhere(jobs, AT_ONCE)
    points = read_points(RUNGS, results / "rungs")
    print(f"{len(points)} of {len(RUNGS)} rungs, {sum(p.flops for p in points) / FLOPS:.1%} of a target's FLOPs")


def forecast(packed: Path, results: Path) -> None:
    """Fit a law to the rungs and write what it predicts of each target."""
    points = read_points(RUNGS, results / "rungs")
    for ratio in TARGETS:
        plan = target_plan(packed, ratio)
        prediction = predict(points, fit_ladder(points), plan)
        prediction.write(results / f"forecast-{ratio}.json")
        shape = f"{plan.parameters:,} parameters, {plan.tokens:,} tokens ({plan.epochs:.2f} epochs)"
        print(f"{ratio:g} tokens a parameter: {shape}, {plan.flops:.4g} FLOPs\n  {prediction.line()}")


def targets(packed: Path, results: Path) -> None:
    """Train the targets and compare them with their forecasts."""
    waiting = [ratio for ratio in TARGETS if not (results / f"target-{ratio}" / POINT).exists()]
    everywhere([[str(packed), str(results), "target", str(ratio), "1"] for ratio in waiting], 1)
    for ratio in TARGETS:
        said = json.loads((results / f"forecast-{ratio}.json").read_text())
        reached = json.loads((results / f"target-{ratio}" / POINT).read_text())
        seconds = json.loads((results / f"target-{ratio}" / "seconds.json").read_text())
        loss, error = reached["validation_loss"], said["loss"] / reached["validation_loss"] - 1
        inside = said["low"] <= loss <= said["high"]
        print(
            f"{ratio:g} tokens a parameter, {reached['flops']:.4g} FLOPs: predicted {said['loss']:.4f} "
            f"[{said['low']:.4f}, {said['high']:.4f}], reached {loss:.4f}: {error:+.2%}, "
            f"{'inside' if inside else 'OUTSIDE'}; {seconds:.0f} s"
        )


def main() -> None:
    if len(sys.argv) not in (4, 6):
        sys.exit(__doc__)
    packed, results, section = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if section == "rung":
        rung = Rung(share=float(sys.argv[4]), tokens_per_parameter=float(sys.argv[5]))
        plan = rung_plans(packed, rung)
        train(packed, results / "rungs" / f"{rung.share}-{rung.tokens_per_parameter}", rung, plan)
    elif section == "target":
        ratio = float(sys.argv[4])
        train(
            packed, results / f"target-{ratio}", Rung(share=1.0, tokens_per_parameter=ratio),
            target_plan(packed, ratio),
        )  # fmt: skip
    else:
        {"rungs": rungs, "forecast": forecast, "targets": targets}[section](packed, results)
        return
    point = json.loads((results / ("rungs" if section == "rung" else "") / _name(section) / POINT).read_text())
    print(json.dumps(asdict(Point(**point))))


def _name(section: str) -> str:
    return f"{float(sys.argv[4])}-{float(sys.argv[5])}" if section == "rung" else f"target-{float(sys.argv[4])}"


if __name__ == "__main__":
    main()
