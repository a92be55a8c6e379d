"""DVC stage `pretrain`: out/size/plan.json + out/pack -> out/pretrain, a Llama in Hugging Face format.

Starts from a new model, or from the one in the folder `init` (continual pretraining).
"""

import json
from pathlib import Path

from stages.contract import Run, run_stage

VALIDATION_ROWS = 64


def main(run: Run) -> None:
    plan = json.loads(Path("out/size/plan.json").read_text())
    from stages.corpus.packing import load_rows
    from stages.scaling.shapes import Shape
    from stages.trainer import fit, hardware, models, parallel, recipe
    from stages.trainer.rows import PackedRows

    machine = hardware.detect()
    train = PackedRows(load_rows(Path("out/pack/train")))
    validation = PackedRows(load_rows(Path("out/pack/validation")), limit=VALIDATION_ROWS)
    chosen = recipe.resolve(
        machine, Shape.of(plan["model"]), plan["batch_rows"], run.params.pack.row_tokens, run.params.trainer,
        train.one_document and validation.one_document,
    )  # fmt: skip
    if not parallel.in_worker():
        print(chosen.table(), flush=True)
        if chosen.sharding != "none":
            return parallel.launch(run, chosen)
    from stages.trainer.pretraining import Work, pretrain

    tokenizer = models.load_tokenizer(Path("out/tokenizer"))
    init = models.initial(Path(run.params.init), tokenizer)
    trainer, history = pretrain(Work(run, plan, chosen, machine, train, validation), tokenizer, init)
    parallel.save(trainer, tokenizer, run.out)
    if parallel.rank() == 0:
        _report(run, plan, history, fit)
    return None


def _report(run: Run, plan: dict, history: list[dict], fit) -> None:
    fit.write_curve(run.reports / "loss.csv", history, ["loss", "learning_rate", "grad_norm"])
    fit.write_points(run.reports / "validation.csv", history, "eval_loss")
    run.report({
        "steps": plan["steps"], "tokens": plan["tokens"], "parameters": plan["parameters"],
        "train_loss": fit.final(history, "loss"), "validation_loss": fit.final(history, "eval_loss", 0),
    }, headline=("validation_loss",))  # fmt: skip


if __name__ == "__main__":
    run_stage("pretrain", main)
