"""A tiny model that answers every question with one word, as sft leaves it."""

import pytest
import torch

from stages.corpus.chats.encoding import render
from stages.corpus.tokens.vocabulary import TURN_END
from stages.scaling.shapes import llama
from stages.trainer.model import models

CONTEXT = 64
ANSWER = "Hey!"


@pytest.fixture(scope="session")
def folder(tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    model = models.create(llama(len(tokenizer), heads=2, layers=2, head_dim=16, row_tokens=CONTEXT).config(), tokenizer)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.get_vocab()[TURN_END]]
    ids, written = render(tokenizer, [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": ANSWER}])
    labels = torch.full((1, len(ids)), -100)
    labels[0, written] = torch.tensor(ids)[written]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(40):
        model(input_ids=torch.tensor([ids]), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    place = tmp_path_factory.mktemp("serving") / "sft"
    models.save_model(model, tokenizer, place)
    return place
