"""Greedy answers to a batch of prompts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 32


def greedy(model: "PreTrainedModel", prompts: Sequence[Sequence[int]], new_tokens: int, stop: int) -> list[list[int]]:
    """Generate the most likely next tokens of each prompt, up to and including ``stop`` or ``new_tokens`` of them.

    Answers take at most half of the context; a prompt longer than the rest loses its left part.
    """
    context = model.config.max_position_embeddings
    new_tokens = min(new_tokens, context // 2)
    room = context - new_tokens
    answers: list[list[int]] = []
    for i in range(0, len(prompts), BATCH):
        answers += _batch(model, [list(p[-room:]) for p in prompts[i : i + BATCH]], new_tokens, stop)
    return answers


def _batch(model: "PreTrainedModel", prompts: list[list[int]], new_tokens: int, stop: int) -> list[list[int]]:
    import torch
    from transformers import GenerationConfig

    width = max(len(p) for p in prompts)
    inputs = torch.full((len(prompts), width), stop, dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for row, prompt in enumerate(prompts):
        inputs[row, width - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    # A fresh configuration: sampling settings or a stop token stored with the model do not count here.
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=stop, pad_token_id=stop, bos_token_id=None
    )
    with torch.inference_mode():
        output = model.generate(inputs.to(model.device), attention_mask=mask.to(model.device), generation_config=config)
    return [_until(row, stop) for row in output[:, width:].tolist()]


def _until(tokens: list[int], stop: int) -> list[int]:
    return tokens[: tokens.index(stop) + 1] if stop in tokens else tokens
