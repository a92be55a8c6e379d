import numpy as np
import pytest

from stages.corpus.chats.turns import encode_texts as encode
from stages.evaluation.measuring.bits import bits_per_byte, document_nats, rolling_windows


def test_equals_lm_evaluation_harness(model, tokenizer, texts):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    prefix = tokenizer.eos_token_id
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, prefix_token_id=prefix)
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    reference = -np.array(lm.loglikelihood_rolling(requests, disable_tqdm=True))
    nats = document_nats(model, encode(tokenizer, texts), prefix)
    sizes = np.array([len(t.encode()) for t in texts])
    assert max(len(ids) for ids in encode(tokenizer, texts)) > 4 * 128
    np.testing.assert_allclose(nats / np.log(2) / sizes, reference / np.log(2) / sizes, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 16, 21])
def test_windows_predict_each_token_once_within_the_context(length):
    tokens = list(range(100, 100 + length))
    predicted = []
    for sequence, positions in rolling_windows(tokens, prefix=1, context=8):
        assert len(sequence) <= 9
        assert positions[0] >= 1
        predicted += [sequence[p] for p in positions]
    assert predicted == tokens


def test_bits_are_summed_before_they_are_divided():
    result = bits_per_byte(np.log(2) * np.array([8.0, 2.0, 30.0]), np.array([4, 2, 10]), ["a", "a", "b"])
    assert result == pytest.approx({"overall": 2.5, "a": 10 / 6, "b": 3.0})
