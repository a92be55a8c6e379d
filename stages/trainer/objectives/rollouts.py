"""Reinforcement learning on rewarded answers, by TRL's trainers with our optimizer, schedule, guard and adapters.

GRPO (Shao et al. 2024, arXiv:2402.03300) and RLOO (Ahmadian et al. 2024, arXiv:2402.14740). TRL generates by
transformers and trains on padded answers: packed rows, compiled layers and our head have no part in it. A stopped run
ends in the weights of an uninterrupted one, since the random state is in the checkpoint; where a log entry is the mean
of several steps, the first after a stop has only the steps since. More processes draw other answers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from stages.contract import UserError
from stages.contract.params import Dpo
from stages.contract.params import Trainer as Wanted
from stages.corpus.chats.encoding import PairRows, segments
from stages.scaling.shapes import Shape
from stages.trainer.loop.causal import ByRecipe
from stages.trainer.objectives.rewards import RULES, last_number
from stages.trainer.optim.guard import Guard
from stages.trainer.parallel.communication import communicate
from stages.trainer.plan.recipe import Recipe


@dataclass(frozen=True)
class Prompts:
    """Prompts to answer, in the order they are trained on."""

    data: Dataset  # token ids of each ``prompt``, and the chosen ``answer`` as text
    row_tokens: int  # of the longest prompt with an answer
    one_document: bool = True  # a row is an answer


def prompts(
    rows: PairRows, tokenizer: PreTrainedTokenizerBase, context: int, params: Dpo, seed: int
) -> tuple[Prompts, int]:
    """Return the prompts of ``rows``, and how many pairs were dropped for a chosen answer without a number.

    A prompt too long for the context and an answer loses its left part.

    Raises:
        UserError: the context has no room for a prompt, no pair is left, or batch_pairs is no multiple of generations.
    """
    room = context - params.answer_tokens
    if room < 1:
        raise UserError(
            f"dpo.answer_tokens: {params.answer_tokens} leave no room for a prompt; the model reads {context}."
        )
    if params.batch_pairs % params.generations:
        raise UserError(
            f"dpo.batch_pairs is {params.batch_pairs}; it must be a multiple of dpo.generations "
            f"({params.generations}). Use {-(-params.batch_pairs // params.generations) * params.generations}."
        )
    pairs = [(ids[-room:], tokenizer.decode(answer, skip_special_tokens=True)) for ids, answer in _chosen(rows)]
    kept = [(ids, answer) for ids, answer in pairs if params.reward != "number" or last_number(answer) is not None]
    if not kept:
        raise UserError(f"dpo.reward: number, and none of the {len(pairs)} chosen answers holds one. Use overlap.")
    ids, answers = zip(*kept, strict=True)
    at = order(len(kept), params.epochs, params.batch_pairs // params.generations, seed)
    data = Dataset.from_dict({"prompt": ids, "answer": answers}).select(at)
    return Prompts(data, max(map(len, ids)) + params.answer_tokens), len(pairs) - len(kept)


def _chosen(rows: PairRows) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the token ids of every pair's prompt and chosen answer."""
    for r in range(len(rows.pairs)):
        for prompt, answer in list(zip(*segments(rows, r), strict=True))[::2]:
            yield prompt.tolist(), answer[0].tolist()


def order(count: int, epochs: float, step: int, seed: int) -> np.ndarray:
    """Return prompt numbers, int64, in whole steps of ``step``; each epoch shuffles the ``count`` prompts anew.

    All epochs are laid out beforehand: TRL's sampler is seeded when it is made, and a resumed run makes another.
    """
    bits, wanted = np.random.PCG64(seed), max(step, round(count * epochs) // step * step)
    mixed = [np.argsort(bits.random_raw(count), kind="stable") for _ in range(-(-wanted // count))]
    return np.concatenate(mixed)[:wanted]


def by_trl(wanted: Wanted) -> Wanted:
    """Return ``wanted`` with the choices that TRL's forward has. Raises UserError for a choice that it lacks."""
    for name, value, possible in (
        ("precision", wanted.precision, ("auto", "bf16", "fp32")),
        ("offload", wanted.offload, ("auto", "none")),
        ("sharding", wanted.sharding, ("auto", "ddp")),
        ("stochastic_rounding", wanted.stochastic_rounding, (False,)),
    ):
        if value not in possible:
            allowed = " or ".join(str(p).lower() for p in possible)
            raise UserError(
                f"trainer.{name}: {str(value).lower()} cannot be had where answers are generated (dpo.loss: grpo, "
                f"rloo). Use {allowed}, or a loss on pairs."
            )
    as_trl = {"attention": "sdpa", "compile": "none", "kernels": "torch", "offload": "none"}
    return wanted.model_copy(update=as_trl)


def answer_bytes(shape: Shape, answers: int, row_tokens: int) -> int:
    """Return the bytes, in fp32, that a device holds besides the trained model and its states.

    They are the reference model, and keys and values of ``answers`` while they are generated.
    """
    cached = 2 * shape.num_hidden_layers * shape.key_value_width * row_tokens
    return 4 * (shape.parameters + answers * cached)


def rollout_arguments(params: Dpo, **common: Any) -> GRPOConfig | RLOOConfig:
    """Return TRL's arguments, with ``common`` of transformers.TrainingArguments."""
    options = common | {
        "num_train_epochs": 1,  # `order` lays them out
        "shuffle_dataset": False,
        "num_generations": params.generations,
        "max_completion_length": params.answer_tokens,
        "beta": params.beta,
        "generation_kwargs": {"use_cache": True},
    }
    return ON_POLICY[params.loss].arguments(**options)


class Rollouts(ByRecipe):
    """Mixed in before one of TRL's trainers.

    Neither method learns a value model. Several answers to a prompt are rewarded, and an answer's advantage is its
    reward minus that of its siblings: GRPO's divides by their deviation too, RLOO's baseline is the mean of the others.

    In its log ``reward`` is the mean, ``stopped`` the share of answers that ended by themselves, and ``kl`` the
    divergence from the model it began with, in nats per token; RLOO's estimate of it may be negative.

    Args:
        model: loaded from the folder that its config names, from which TRL takes the reference.
        recipe: how to train.
        reward: one of `stages.trainer.objectives.rewards.RULES`.
        data: columns ``prompt`` and ``answer``, in the order they are trained on.
        Others as TRL's.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, reward: str,
        data: Dataset, args: GRPOConfig | RLOOConfig,
    ) -> None:  # fmt: skip
        self.recipe = recipe
        args._n_gpu = 1  # see CausalTrainer
        args.gradient_checkpointing = recipe.checkpointing != "none"

        def rewarded(completions: list[str], answer: list[str], **_: Any) -> list[float]:
            return [RULES[reward](*pair) for pair in zip(completions, answer, strict=True)]

        super().__init__(model=model, reward_funcs=rewarded, args=args, train_dataset=data, processing_class=tokenizer)
        self.guard = Guard(recipe.params.skip_sigma, self.args.device)
        communicate(self, recipe)

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the prompts, which are token ids, as TRL does texts: (ids, images, what else a processor adds)."""
        return prompts, None, {}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if cut := self._metrics["train"]["completions/clipped_ratio"]:
            logs["stopped"] = 1 - sum(cut) / len(cut)
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: a checkpoint holds what training needs."""

    def _send_telemetry(self) -> None:
        """Send none: nothing leaves the machine."""


class GrpoTrainer(Rollouts, GRPOTrainer):
    """TRL's GRPO trainer on rollouts of this model."""


class RlooTrainer(Rollouts, RLOOTrainer):
    """TRL's RLOO trainer on rollouts of this model."""


class Method(NamedTuple):
    """TRL's trainer and arguments of a method: one row of ON_POLICY."""

    trainer: type[Rollouts]
    arguments: Callable[..., GRPOConfig | RLOOConfig]


# dpo.loss on answers of its own. GRPO: the paper's mean over each answer's tokens, not TRL's over those of the batch.
ON_POLICY = {
    "grpo": Method(GrpoTrainer, partial(GRPOConfig, loss_type="grpo")),
    "rloo": Method(RlooTrainer, RLOOConfig),
}


def trainer(
    params: Dpo, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, train_dataset: Prompts,
    args: GRPOConfig | RLOOConfig,
) -> Rollouts:  # fmt: skip
    """Build the trainer of ``params.loss``."""
    return ON_POLICY[params.loss].trainer(model, tokenizer, recipe, params.reward, train_dataset.data, args)
