"""DVC stage `dpo`: out/sft + out/reference -> out/dpo, trained on preferences or on rewarded answers of its own.

`dpo.loss` says how: stages/trainer/preference.py, kto.py and rollouts.py name the papers.
"""

import functools
from dataclasses import replace
from pathlib import Path

from stages.contract import Run, run_stage

START, REFERENCE = Path("out/sft"), Path("out/reference")
CURVES = {
    "loss.csv": ["loss", "learning_rate", "grad_norm"],
    "rewards.csv": ["rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"],
    "drift.csv": ["drift/chosen", "drift/rejected", "kl"],
}
REWARDED = ["reward", "kl", "stopped"]


def main(run: Run) -> None:
    from stages.corpus.chats import PairRows
    from stages.corpus.packing import load_rows
    from stages.trainer import fit

    packed = load_rows(REFERENCE, PairRows)
    from_pairs = run.params.dpo.loss not in ("grpo", "rloo")
    trained = (_from_pairs if from_pairs else _from_rewards)(run, packed)
    if trained:
        history, figures = trained
        # dvc.yaml plots the former two of rewards.csv for every loss.
        rewards = CURVES["rewards.csv"] if from_pairs else [*CURVES["rewards.csv"][:2], *REWARDED]
        for file, columns in (CURVES | {"rewards.csv": rewards}).items():
            fit.write_curve(run.reports / file, history, columns)
        run.report(figures, headline=("reward_accuracy",) if from_pairs else ("reward",))


def _from_pairs(run: Run, packed):
    params = run.params.dpo
    import numpy as np

    from stages.evaluation import displacement
    from stages.scaling.shapes import divisible
    from stages.trainer import fit
    from stages.trainer.kto import with_mismatched
    from stages.trainer.preference import paired
    from stages.trainer.tuning import Work, tune

    rows = paired(packed, np.load(REFERENCE / "logps.npy", allow_pickle=False))
    if params.loss == "kto":
        rows = with_mismatched(rows, START, run.params.trainer, run.scratch / "mismatched.npy")
    # A row holds as many pairs as fit; a step, as many rows as hold about batch_pairs.
    pairs_per_row = int(packed.pairs.sum()) / len(rows)
    batch_rows = divisible(params.batch_pairs / pairs_per_row)
    trained = tune(Work(run, "dpo", START, rows, batch_rows, params), functools.partial(_pair_trainer, params))
    if trained:
        steps, history = trained
        drift = fit.final(history, "drift/chosen")
        if warning := displacement.warning(drift, "pairs trained on"):
            print(warning, flush=True)
        return history, {
            "steps": steps, "pairs_per_step": round(batch_rows * pairs_per_row, 2),
            "train_loss": fit.final(history, "loss"),
            "reward_margin": fit.final(history, "rewards/margins"),
            "reward_accuracy": fit.final(history, "rewards/accuracies"),
            "chosen_drift": drift, "rejected_drift": fit.final(history, "drift/rejected"),
            "kl_estimate": fit.final(history, "kl"),
        }  # fmt: skip


def _pair_trainer(params, model, tokenizer, **kwargs):
    from stages.trainer.kto import KtoTrainer
    from stages.trainer.preference import Preference, PreferenceTrainer

    preference = Preference(params.loss, params.beta, params.label_smoothing, params.gamma)
    return (KtoTrainer if params.loss == "kto" else PreferenceTrainer)(model, preference, **kwargs)


def _from_rewards(run: Run, packed):
    params = run.params.dpo
    from stages.trainer import fit, models, rollouts
    from stages.trainer.tuning import Work, tune

    run = replace(run, params=run.params.model_copy(update={"trainer": rollouts.by_trl(run.params.trainer)}))
    shape, answers = models.shape(START), params.batch_pairs
    tokenizer = models.load_tokenizer(START)
    asked, no_number = rollouts.prompts(packed, tokenizer, shape.max_position_embeddings, params, run.params.seed)
    beside = rollouts.beside(shape, answers, asked.row_tokens)
    work = Work(run, "dpo", START, asked, answers, params, beside=beside)
    trained = tune(work, functools.partial(rollouts.trainer, params), functools.partial(rollouts.arguments, params))
    if trained:
        steps, history = trained
        return history, {
            "steps": steps, "answers_per_step": answers, "no_number": no_number,
            "train_loss": fit.final(history, "loss"), **{name: fit.final(history, name) for name in REWARDED},
        }  # fmt: skip


if __name__ == "__main__":
    run_stage("dpo", main)
