import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.corpus.chats.encoding import render
from stages.evaluation.measuring import assistant, divergence
from stages.evaluation.measuring.divergence import Predictions, mean_kl

CHATS = [
    [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": answer}]
    for answer in ("Hey!", "I am good, and so are you.", "No.")
]


@given(st.integers(1, 9), st.integers(1, 40), st.integers())
def test_equals_torch_in_any_chunks(positions, chunk, seed):
    draw = np.random.default_rng(seed % 2**32)
    p, q = (Predictions(*(draw.normal(size=(n, 4)).astype(np.float32) for n in (positions, 11))) for _ in range(2))
    log_p, log_q = (torch.from_numpy(x.hidden @ x.head.T).log_softmax(-1) for x in (p, q))
    expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    before, divergence.CHUNK_LOGITS = divergence.CHUNK_LOGITS, chunk
    try:
        assert mean_kl(p, q) == pytest.approx(float(expected), abs=1e-5) and mean_kl(p, p) == 0
    finally:
        divergence.CHUNK_LOGITS = before


def test_it_is_taken_where_the_assistant_speaks(model, tokenizer, monkeypatch):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.1)
    found = [assistant.assistant_loss(m, tokenizer, CHATS)[1] for m in (model, other)]
    each = []
    for chat in CHATS:
        ids, written = render(tokenizer, chat)
        with torch.inference_mode():
            p, q = (m(torch.tensor([ids])).logits[0, written - 1].log_softmax(-1) for m in (model, other))
        each.append((p.exp() * (p - q)).sum(-1))
    assert mean_kl(*found) == pytest.approx(float(torch.cat(each).mean()), abs=1e-5)
    # Of more positions than are kept, every k-th.
    monkeypatch.setattr(assistant, "MOST_POSITIONS", len(found[0].hidden) // 2)
    assert len(assistant.assistant_loss(model, tokenizer, CHATS)[1].hidden) <= -(-len(found[0].hidden) // 2)
