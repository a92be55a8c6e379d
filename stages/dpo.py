"""DVC stage `dpo`: out/sft + out/reference -> out/dpo (Rafailov et al. 2023, arXiv:2305.18290)."""

import functools
from pathlib import Path

from stages.contract import Run, run_stage

CURVES = ["rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"]


def main(run: Run) -> None:
    params = run.params.dpo
    import numpy as np

    from stages.corpus.chats import PairRows
    from stages.corpus.packing import load_rows
    from stages.scaling.shapes import divisible
    from stages.trainer import fit
    from stages.trainer.kto import with_mismatched
    from stages.trainer.preference import paired
    from stages.trainer.tuning import Work, tune

    packed = load_rows(Path("out/reference"), PairRows)
    rows = paired(packed, np.load("out/reference/logps.npy", allow_pickle=False))
    if params.loss == "kto":
        rows = with_mismatched(rows, Path("out/sft"), run.params.trainer, run.scratch / "mismatched.npy")
    # A row holds as many pairs as fit; a step, as many rows as hold about batch_pairs.
    pairs_per_row = int(packed.pairs.sum()) / len(rows)
    batch_rows = divisible(params.batch_pairs / pairs_per_row)
    trained = tune(Work(run, "dpo", Path("out/sft"), rows, batch_rows, params), functools.partial(_trainer, params))
    if trained:
        steps, history = trained
        fit.write_curve(run.reports / "loss.csv", history, ["loss", "learning_rate", "grad_norm"])
        fit.write_curve(run.reports / "rewards.csv", history, CURVES)
        run.report({
            "steps": steps, "pairs_per_step": round(batch_rows * pairs_per_row, 2),
            "train_loss": fit.final(history, "loss"),
            "reward_margin": fit.final(history, "rewards/margins"),
            "reward_accuracy": fit.final(history, "rewards/accuracies"),
        }, headline=("reward_accuracy",))  # fmt: skip


def _trainer(params, model, tokenizer, **kwargs):
    from stages.trainer.kto import KtoTrainer
    from stages.trainer.preference import Preference, PreferenceTrainer

    preference = Preference(params.loss, params.beta, params.label_smoothing, params.gamma)
    return (KtoTrainer if params.loss == "kto" else PreferenceTrainer)(model, preference, **kwargs)


if __name__ == "__main__":
    run_stage("dpo", main)
