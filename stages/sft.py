"""DVC stage `sft`: out/pretrain + out/chats -> out/sft, trained on the assistant's turns.

It also learns from the model in the folder `sft.teacher`, if there is one (distillation).
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract import Run, run_stage
from stages.contract.params import Sft

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stages.trainer.objectives.supervised import ChatTrainer


def main(run: Run) -> None:
    """Fine-tune the base model on the packed conversations."""
    params = run.params.sft
    from stages.corpus.chats.encoding import Chats
    from stages.corpus.tokens.packed_rows import load_rows
    from stages.scaling.shapes import divisible
    from stages.trainer.loop.history import final, last_step, write_curve
    from stages.trainer.loop.rows import PackedRows
    from stages.trainer.loop.tuning import TuneWork, tune
    from stages.trainer.objectives import distillation

    start, rows = Path("out/pretrain"), PackedRows(load_rows(Path("out/chats"), Chats))
    batch_rows = divisible(params.batch_tokens / rows.row_tokens)
    teacher = distillation.find_teacher(Path(params.teacher), start, rows.row_tokens) if params.distill else None
    history = tune(TuneWork(run, "sft", start, rows, batch_rows, params, teacher), partial(_trainer, params))
    if history:
        write_curve(run.reports / "loss.csv", history, ["loss", "learning_rate", "grad_norm"])
        write_curve(run.reports / "stops.csv", history, ["stop_probability"])
        figures = {"steps": last_step(history), "train_loss": final(history, "loss")}
        if any("stop_probability" in entry for entry in history):  # not where every conversation is cut before its end
            figures["stop_probability"] = final(history, "stop_probability")
        run.report(figures)


def _trainer(
    params: Sft, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase",
    teacher: "PreTrainedModel | None" = None, **kwargs: Any,
) -> "ChatTrainer":  # fmt: skip
    from stages.corpus.chats.turns import turn_end
    from stages.corpus.tokens.adoption import marks_of
    from stages.trainer.objectives.distillation import Distillation, DistillationTrainer
    from stages.trainer.objectives.supervised import ChatTrainer

    stop = turn_end(tokenizer)
    # An answer ends with its turn: engines read where to stop from generation_config.json.
    own = model.generation_config.eos_token_id
    known = own if isinstance(own, list) else [own] if own is not None else []
    model.generation_config.eos_token_id = list(dict.fromkeys([marks_of(tokenizer).end, stop, *known]))
    if teacher is None:
        return ChatTrainer(model, stop, **kwargs)
    distillation = Distillation(teacher, params.distill, params.temperature)
    return DistillationTrainer(model, distillation, turn_end=stop, **kwargs)


if __name__ == "__main__":
    run_stage("sft", main)
