"""DVC stage `pretrain`: out/size/plan.json + out/pack -> out/pretrain, a Llama in Hugging Face format."""

import json
from pathlib import Path

from stages.contract import Run, run_stage

VALIDATION_ROWS = 64


def main(run: Run) -> None:
    plan = json.loads(Path("out/size/plan.json").read_text())
    from transformers import Trainer, TrainingArguments, set_seed

    from stages.corpus.packing import load_rows
    from stages.trainer import fit, models, recipe
    from stages.trainer.rows import PackedRows

    row_tokens, steps = run.params.pack.row_tokens, plan["steps"]
    chosen = recipe.resolve(recipe.detect(), plan["batch_rows"], row_tokens, plan["memory"])
    print(chosen.table(), flush=True)
    set_seed(run.params.seed)
    tokenizer = models.load_tokenizer(Path("out/tokenizer"))
    model = models.create(plan["model"], tokenizer, chosen.attention)
    trainer = Trainer(
        model=model,
        train_dataset=PackedRows(load_rows(Path("out/pack/train"))),
        eval_dataset=PackedRows(load_rows(Path("out/pack/validation")), limit=VALIDATION_ROWS),
        args=TrainingArguments(
            **fit.arguments(run, plan["learning_rate"], run.params.pretrain.warmup),
            **chosen.arguments(),
            max_steps=steps,
            adam_beta2=0.95,
            weight_decay=run.params.pretrain.weight_decay,
            max_grad_norm=run.params.pretrain.clip,
            eval_strategy="steps",
            eval_steps=max(1, steps // 10),
            per_device_eval_batch_size=chosen.micro_batch,
            prediction_loss_only=True,
        ),
    )
    history = fit.fit(trainer, run, "pretrain")
    models.save(model, tokenizer, run.out)
    fit.write_curve(run.reports / "loss.csv", history, ["loss", "learning_rate", "grad_norm"])
    fit.write_points(run.reports / "validation.csv", history, "eval_loss")
    run.report({
        "steps": steps, "tokens": plan["tokens"], "parameters": plan["parameters"],
        "train_loss": fit.final(history, "loss"), "validation_loss": fit.final(history, "eval_loss", 0),
    }, headline=("validation_loss",))  # fmt: skip


if __name__ == "__main__":
    run_stage("pretrain", main)
