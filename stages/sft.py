"""DVC stage `sft`: out/pretrain + out/chats -> out/sft, trained on what the assistant says.

Learns from the model in the folder `sft.teacher` too, if there is one (distillation).
"""

from functools import partial
from pathlib import Path

from stages.contract import Run, run_stage


def main(run: Run) -> None:
    params = run.params.sft
    from stages.corpus.chats import Chats
    from stages.corpus.packing import load_rows
    from stages.scaling.shapes import divisible
    from stages.trainer import distillation, fit
    from stages.trainer.rows import PackedRows
    from stages.trainer.tuning import Work, tune

    start, rows = Path("out/pretrain"), PackedRows(load_rows(Path("out/chats"), Chats))
    batch_rows = divisible(params.batch_tokens / rows.row_tokens)
    teacher = distillation.find_teacher(Path(params.teacher), start, rows.row_tokens) if params.distill else None
    trained = tune(Work(run, "sft", start, rows, batch_rows, params, teacher), partial(_trainer, params))
    if trained:
        steps, history = trained
        fit.write_curve(run.reports / "loss.csv", history, ["loss", "learning_rate", "grad_norm"])
        fit.write_curve(run.reports / "stops.csv", history, ["stop_probability"])
        found = {"steps": steps, "train_loss": fit.final(history, "loss")}
        if any("stop_probability" in entry for entry in history):  # not where every conversation is cut before its end
            found["stop_probability"] = fit.final(history, "stop_probability")
        run.report(found, headline=("train_loss",))


def _trainer(params, model, tokenizer, teacher=None, **kwargs):
    from stages.corpus.vocabulary import TURN_END
    from stages.trainer.chat import ChatTrainer
    from stages.trainer.distillation import Distillation, DistillationTrainer

    turn_end = tokenizer.convert_tokens_to_ids(TURN_END)
    # An answer ends with its turn; what generates with this model must know.
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, turn_end]
    if teacher is None:
        return ChatTrainer(model, turn_end, **kwargs)
    distillation = Distillation(teacher, params.distill, params.temperature)
    return DistillationTrainer(model, distillation, turn_end=turn_end, **kwargs)


if __name__ == "__main__":
    run_stage("sft", main)
