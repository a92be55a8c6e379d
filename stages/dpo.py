"""DVC stage `dpo`: out/sft + out/reference -> out/dpo, trained on preferences or on rewarded answers of its own.

`dpo.loss` chooses: stages/trainer/objectives/preference.py, kto.py and rollouts.py name the papers.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract import Run, run_stage
from stages.contract.params import Dpo

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stages.corpus.chats.encoding import PairRows
    from stages.trainer.loop.history import History
    from stages.trainer.objectives.preference import PreferenceTrainer

START, REFERENCE = Path("out/sft"), Path("out/reference")
CURVES = {
    "loss.csv": ["loss", "learning_rate", "grad_norm"],
    "rewards.csv": ["rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"],
    "drift.csv": ["drift/chosen", "drift/rejected", "kl"],
}
REWARDED = ["reward", "kl", "stopped"]


def main(run: Run) -> None:
    """Train on preferences, from the model of sft."""
    from stages.corpus.chats.encoding import PairRows
    from stages.corpus.tokens.packed_rows import load_rows
    from stages.trainer.loop.history import write_curve
    from stages.trainer.objectives.preference import LOSSES

    from_pairs = run.params.dpo.loss in LOSSES
    if trained := (_from_pairs if from_pairs else _from_rewards)(run, load_rows(REFERENCE, PairRows)):
        history, figures = trained
        # dvc.yaml plots the former two of rewards.csv for every loss.
        rewards = CURVES["rewards.csv"] if from_pairs else [*CURVES["rewards.csv"][:2], *REWARDED]
        for file, columns in (CURVES | {"rewards.csv": rewards}).items():
            write_curve(run.reports / file, history, columns)
        run.report(figures)


def _from_pairs(run: Run, packed: "PairRows") -> "tuple[History, dict[str, Any]] | None":
    params = run.params.dpo
    import numpy as np

    from stages.evaluation.reporting import displacement
    from stages.scaling.shapes import divisible
    from stages.trainer.loop.history import final, last_step
    from stages.trainer.loop.tuning import TuneWork, tune
    from stages.trainer.objectives.kto import with_mismatched
    from stages.trainer.objectives.preference import paired

    rows = paired(packed, np.load(REFERENCE / "logps.npy", allow_pickle=False))
    if params.loss == "kto":
        rows = with_mismatched(rows, START, run.params.trainer, run.scratch / "mismatched.npy")
    # A row holds as many pairs as fit; a step, as many rows as hold about batch_pairs.
    pairs_per_row = int(packed.pairs.sum()) / len(rows)
    batch_rows = divisible(params.batch_pairs / pairs_per_row)
    if history := tune(TuneWork(run, "dpo", START, rows, batch_rows, params), partial(_pair_trainer, params)):
        drift = final(history, "drift/chosen")
        if warning := displacement.warning(drift, "pairs trained on"):
            print(warning, flush=True)
        return history, {
            "steps": last_step(history), "pairs_per_step": round(batch_rows * pairs_per_row, 2),
            "train_loss": final(history, "loss"),
            "reward_margin": final(history, "rewards/margins"),
            "reward_accuracy": final(history, "rewards/accuracies"),
            "chosen_drift": drift, "rejected_drift": final(history, "drift/rejected"),
            "kl_estimate": final(history, "kl"),
        }  # fmt: skip
    return None


def _pair_trainer(
    params: Dpo, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", **kwargs: Any
) -> "PreferenceTrainer":
    from stages.trainer.objectives.kto import KtoTrainer
    from stages.trainer.objectives.preference import PreferenceTrainer

    return (KtoTrainer if params.loss == "kto" else PreferenceTrainer)(model, params, **kwargs)


def _from_rewards(run: Run, packed: "PairRows") -> "tuple[History, dict[str, Any]] | None":
    params = run.params.dpo
    from stages.trainer.loop.history import final, last_step
    from stages.trainer.loop.tuning import TuneWork, tune
    from stages.trainer.model import models
    from stages.trainer.objectives import rollouts

    run = replace(run, params=run.params.model_copy(update={"trainer": rollouts.by_trl(run.params.trainer)}))
    shape, answers = models.shape(START), params.batch_pairs
    tokenizer = models.load_tokenizer(START)
    prompts, no_number = rollouts.prompts(packed, tokenizer, shape.max_position_embeddings, params, run.params.seed)
    answer_bytes = rollouts.answer_bytes(shape, answers, prompts.row_tokens)
    work = TuneWork(run, "dpo", START, prompts, answers, params, answer_bytes=answer_bytes)
    if history := tune(work, partial(rollouts.trainer, params), partial(rollouts.rollout_arguments, params)):
        return history, {
            "steps": last_step(history), "answers_per_step": answers, "no_number": no_number,
            "train_loss": final(history, "loss"), **{name: final(history, name) for name in REWARDED},
        }  # fmt: skip
    return None


if __name__ == "__main__":
    run_stage("dpo", main)
