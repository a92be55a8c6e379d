"""Learning from rewarded answers of its own: GRPO (Shao et al. 2024, arXiv:2402.03300) and RLOO (Ahmadian et al. 2024,
arXiv:2402.14740), by TRL's trainers with our optimizer, schedule, guard and adapters.

TRL generates by transformers and trains on padded answers, so attention over packed rows, compiled layers and our head
have no part in it; a step's answers are drawn by the model as it is before the step.

A stopped run ends in the weights of an uninterrupted one: what is drawn follows from the random state in the
checkpoint. Where a log entry is the mean of several steps, the first one after a stop is that of the steps since.
With another number of processes other answers are drawn.
"""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from stages.contract import UserError
from stages.contract.params import Dpo
from stages.contract.params import Trainer as Wanted
from stages.corpus.chats import PairRows, segments
from stages.scaling.shapes import Shape
from stages.trainer.causal import ByRecipe
from stages.trainer.communication import communicate
from stages.trainer.guard import Guard
from stages.trainer.recipe import Recipe
from stages.trainer.rewards import RULES, last_number


@dataclass(frozen=True)
class Prompts:
    """``data``: token ids of each ``prompt``, and the chosen ``answer`` as text; ``row_tokens``: those of the longest
    prompt with an answer."""

    data: Dataset
    row_tokens: int
    one_document: bool = True  # a row is an answer


def prompts(rows: PairRows, tokenizer, context: int, params: Dpo, seed: int) -> tuple[Prompts, int]:
    """(what ``rows`` ask, as often and in the order it is trained on; pairs set aside because the reward is by number
    and their chosen answer holds none).

    A prompt too long for the context and an answer loses its left part.

    Raises:
        UserError: the context has no room for a prompt, no pair is left, or a step's answers are not to whole prompts.
    """
    room = context - params.answer_tokens
    if room < 1:
        raise UserError(
            f"dpo.answer_tokens: {params.answer_tokens} leave no room for a prompt; the model reads {context}."
        )
    if params.batch_pairs % params.generations:
        raise UserError(
            f"dpo.generations: {params.generations} do not divide dpo.batch_pairs, {params.batch_pairs}, the answers "
            f"of a step. The next they divide: {-(-params.batch_pairs // params.generations) * params.generations}."
        )
    asked = [(ids[-room:], tokenizer.decode(answer, skip_special_tokens=True)) for ids, answer in _chosen(rows)]
    kept = [(ids, answer) for ids, answer in asked if params.reward != "number" or last_number(answer) is not None]
    if not kept:
        raise UserError(f"dpo.reward: number, and none of the {len(asked)} chosen answers holds one. Use overlap.")
    ids, answers = zip(*kept, strict=True)
    at = order(len(kept), params.epochs, params.batch_pairs // params.generations, seed)
    data = Dataset.from_dict({"prompt": ids, "answer": answers}).select(at)
    return Prompts(data, max(map(len, ids)) + params.answer_tokens), len(asked) - len(kept)


def _chosen(rows: PairRows):
    """(token ids of the prompt, of the chosen answer) of every pair."""
    for r in range(len(rows.pairs)):
        for prompt, answer in list(zip(*segments(rows, r), strict=True))[::2]:
            yield prompt.tolist(), answer[0].tolist()


def order(count: int, epochs: float, step: int, seed: int) -> np.ndarray:
    """int64: which of ``count`` prompts come after one another, in whole steps of ``step``; each epoch is mixed anew.

    All epochs are laid out beforehand: TRL's sampler is seeded when it is made, and a resumed run makes another.
    """
    bits, wanted = np.random.PCG64(seed), max(step, round(count * epochs) // step * step)
    mixed = [np.argsort(bits.random_raw(count), kind="stable") for _ in range(-(-wanted // count))]
    return np.concatenate(mixed)[:wanted]


def by_trl(wanted: Wanted) -> Wanted:
    """``wanted`` as far as it goes with TRL's forward.

    Raises:
        UserError: it cannot do what is asked.
    """
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


def beside(shape: Shape, answers: int, row_tokens: int) -> int:
    """Bytes that a device holds besides what is trained: the reference model, and keys and values of ``answers`` while
    they are generated, all in fp32."""
    cached = 2 * shape.num_hidden_layers * shape.key_value_width * row_tokens
    return 4 * (shape.parameters + answers * cached)


def arguments(params: Dpo, **common) -> GRPOConfig | RLOOConfig:
    """TRL's, of ``common`` of transformers.TrainingArguments."""
    options = common | {
        "num_train_epochs": 1,  # `order` lays them out
        "shuffle_dataset": False,
        "num_generations": params.generations,
        "max_completion_length": params.answer_tokens,
        "beta": params.beta,
        "generation_kwargs": {"use_cache": True},
    }
    # The paper's mean over each answer's tokens, not TRL's default over those of the batch.
    return GRPOConfig(**options, loss_type="grpo") if params.loss == "grpo" else RLOOConfig(**options)


class Rollouts(ByRecipe):
    """Mixed in before one of TRL's trainers.

    In its log ``reward`` is the mean, ``stopped`` the share of answers that ended by themselves, and ``kl`` the
    divergence from the model it began with, in nats a token; RLOO's estimate of it may be negative.

    Args:
        model: loaded from the folder that its config names, from which TRL takes the reference.
        recipe: how to train.
        reward: one of `stages.trainer.rewards.RULES`.
        data: columns ``prompt`` and ``answer``, in the order they are trained on.
        Others as TRL's.
    """

    def __init__(self, model, tokenizer, recipe: Recipe, reward: str, data: Dataset, decay_share: float, args):
        self.recipe, self.decay_share = recipe, decay_share
        args._n_gpu = 1  # see CausalTrainer
        args.gradient_checkpointing = recipe.checkpointing != "none"

        def rewarded(completions, answer, **_) -> list[float]:
            return [RULES[reward](*pair) for pair in zip(completions, answer, strict=True)]

        super().__init__(model=model, reward_funcs=rewarded, args=args, train_dataset=data, processing_class=tokenizer)
        self.guard = Guard(recipe.skip_sigma, self.args.device)
        communicate(self, recipe)

    def _tokenize_prompts(self, prompts):
        """They are token ids; what TRL returns of texts: (ids, images, what else a processor adds)."""
        return prompts, None, {}

    def log(self, logs, start_time=None):
        if cut := self._metrics["train"]["completions/clipped_ratio"]:
            logs["stopped"] = 1 - sum(cut) / len(cut)
        super().log(logs, start_time)

    def create_model_card(self, *args, **kwargs):
        """None: a checkpoint holds what training needs."""

    def _send_telemetry(self):
        """None: nothing leaves the machine."""


class GrpoTrainer(Rollouts, GRPOTrainer):
    pass


class RlooTrainer(Rollouts, RLOOTrainer):
    pass


def trainer(
    params: Dpo, model, tokenizer, recipe: Recipe, train_dataset: Prompts, decay_share: float, args
) -> Rollouts:
    kind = GrpoTrainer if params.loss == "grpo" else RlooTrainer
    return kind(model, tokenizer, recipe, params.reward, train_dataset.data, decay_share, args)
