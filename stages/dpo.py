"""DVC stage `dpo`: out/sft + out/reference -> out/dpo (Rafailov et al. 2023, arXiv:2305.18290)."""

import functools
from pathlib import Path

from stages.contract import Run, run_stage

CURVES = {
    "loss.csv": ["loss", "learning_rate", "grad_norm"],
    "rewards.csv": ["rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"],
    "drift.csv": ["drift/chosen", "drift/rejected", "kl"],
}


def main(run: Run) -> None:
    params = run.params.dpo
    import numpy as np

    from stages.corpus.chats import PairRows
    from stages.corpus.packing import load_rows
    from stages.evaluation import displacement
    from stages.scaling.shapes import divisible
    from stages.trainer import fit
    from stages.trainer.preference import paired
    from stages.trainer.tuning import Work, tune

    packed = load_rows(Path("out/reference"), PairRows)
    rows = paired(packed, np.load("out/reference/logps.npy", allow_pickle=False))
    # A row holds as many pairs as fit; a step, as many rows as hold about batch_pairs.
    pairs_per_row = int(packed.pairs.sum()) / len(rows)
    batch_rows = divisible(params.batch_pairs / pairs_per_row)
    trained = tune(Work(run, "dpo", Path("out/sft"), rows, batch_rows, params), functools.partial(_trainer, params))
    if trained:
        steps, history = trained
        for file, columns in CURVES.items():
            fit.write_curve(run.reports / file, history, columns)
        drift = fit.final(history, "drift/chosen")
        if warning := displacement.warning(drift, "pairs trained on"):
            print(warning, flush=True)
        run.report({
            "steps": steps, "pairs_per_step": round(batch_rows * pairs_per_row, 2),
            "train_loss": fit.final(history, "loss"),
            "reward_margin": fit.final(history, "rewards/margins"),
            "reward_accuracy": fit.final(history, "rewards/accuracies"),
            "chosen_drift": drift, "rejected_drift": fit.final(history, "drift/rejected"),
            "kl_estimate": fit.final(history, "kl"),
        }, headline=("reward_accuracy",))  # fmt: skip


def _trainer(params, model, tokenizer, **kwargs):
    from stages.trainer.preference import Preference, PreferenceTrainer

    preference = Preference(params.loss, params.beta, params.label_smoothing, params.gamma)
    return PreferenceTrainer(model, preference, **kwargs)


if __name__ == "__main__":
    run_stage("dpo", main)
