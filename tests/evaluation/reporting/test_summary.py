import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.contract import Account
from stages.evaluation.measuring.divergence import Predictions, mean_kl
from stages.evaluation.measuring.examples import Example
from stages.evaluation.measuring.measured import Answer, HeldOutData, Measured
from stages.evaluation.reporting import layout, summary
from stages.evaluation.reporting.figures import figures, forecast_figures
from stages.scaling.ladder import Prediction

MODELS = ("base", "sft", "dpo")
EARLIER = {
    "dedup": {"documents_in": 3600, "documents_out": 3400},
    "filter": {"documents_in": 3400, "documents_out": 3000},
    "pack": {"train": {"tokens": 5000000}},
    "chats": {
        "records": {"data.sft": Account("data.sft", "conversations", 9, 6, {"no messages": 2}, {"x": 1}).figures()}
    },
    "plan": {"parameters": 1377408, "tokens": 1200000},
}


def data(chats=1, pairs=2):
    return HeldOutData(
        texts=[{"text": "abcd", "source": "books"}, {"text": "efgh", "source": "manuals|x"}],
        chats=[[]] * chats,
        pairs=[{"id": str(i)} for i in range(pairs)],
        tasks={"quiz": [Example("mc", "", "?", ("a", "b"))]},
        not_run={"humaneval": "would run code"},
    )


def measured(bits, chats=1, pairs=2):
    logprobs = {"base": [[-5, -4], [-5, -4]], "sft": [[-3, -4], [-5, -4]], "dpo": [[-3, -4], [-3, -4]]}
    return {
        name: Measured(
            documents=[],
            prefix=0,
            vocabulary=5,
            nats=np.log(2) * 4 * np.array([bits, bits + 1]),
            loss={"nats_per_token": 2.0 - i / 10, "tokens": 9, "cut": 0, "no_answer_left": 0} if chats else None,
            predictions=predictions(i) if chats else None,
            chat_nats=np.ones((chats, 2)) if chats else None,
            problems=[""] * pairs,
            pairs=np.array(logprobs[name], dtype=float)[:pairs].reshape(-1, 2),
            lengths=np.ones((pairs, 2)),
            cut=0,
            answers=[Answer([], "a", i > 0)] if chats else [],
            tasks={"quiz": {"acc": 0.5, "examples": 1}},
            examples=[],
        )
        for i, name in enumerate(MODELS)
    }


def predictions(seed):
    draw = np.random.default_rng(seed)
    return Predictions(draw.normal(size=(4, 3)).astype(np.float32), draw.normal(size=(5, 3)).astype(np.float32))


def ngrams(bits):
    values = {"byte_unigram": 5.0, "byte_trigram": 3.0, "token_trigram": bits}
    return {name: np.log(2) * 4 * np.array([value, value]) for name, value in values.items()}


def report(bits=2.0, trigram=2.4, chats=1, pairs=2):
    metrics = figures(data(chats, pairs), measured(bits, chats, pairs), ngrams(trigram), beta=0.1, new_tokens=64)
    return metrics, layout.text(summary.summary_blocks(metrics, EARLIER))


FORECAST = Prediction(3, 0.09, 0.05, 5.0, 4.5, 5.5, "")


@pytest.mark.parametrize(
    ("reached", "says"), [(5.5, "lies inside the interval"), (4.4, "lies outside of the interval")]
)
def test_forecast_is_beside_what_was_reached(reached, says):
    metrics, _ = report()
    metrics["forecast"] = forecast_figures(FORECAST, reached)
    text = layout.text(summary.summary_blocks(metrics, EARLIER))
    row = next(line.split() for line in text.splitlines() if line.startswith("  pretrain "))
    assert says in text and row[1:] == ["5.000", "4.500", "5.500", f"{reached:.3f}"]
    assert metrics["forecast"]["inside"] == (reached == 5.5) and "5.0% of the target's FLOPs, all with 9.0%" in text


def test_missing_forecast_is_one_line_with_the_reason():
    metrics, before = report()
    metrics["forecast"] = forecast_figures(replace(FORECAST, loss=None, low=None, high=None, reason="too few"), 5.0)
    text = layout.text(summary.summary_blocks(metrics, EARLIER))
    assert "No forecast: too few." in text and "Forecast" not in before


def test_the_closing_table_says_what_happened():
    metrics, text = report()
    assert "3,600 in → 3,400 after deduplication → 3,000 after filtering" in text
    assert metrics["bits_per_byte"]["base"]["overall"] == pytest.approx(2.5)
    assert "The base model did not beat the best n-gram model (token trigram): it needs 4.2% more bits." in text
    assert "Fine-tuning lowered the loss" in text and "1 of 1" in text
    assert "not changed by more than its standard error (+50.0 ± 50.0 points, paired)" in " ".join(text.split())
    kl = mean_kl(predictions(2), predictions(1))
    assert metrics["kl"]["dpo_from_sft"] == kl and f"{kl:.4f}" in text
    assert "per token: chosen +1.0000, rejected +0.0000 nats." in " ".join(text.split()) and "Warning" not in text
    assert "Not run: humaneval (would run code)." in text
    assert "chats, data.sft     9     6         2        1" in text and "chats: 2 no messages; chats: 1 x." in text
    assert all(len(line) <= layout.WIDTH for line in text.splitlines())


def test_a_better_model_is_said_to_be_better():
    assert "needs 16.7% fewer bits" in report(bits=2.0, trigram=3.5)[1]  # 2.5 against the byte trigram's 3.0


def test_nothing_held_out_is_said_and_not_measured():
    metrics, text = report(chats=0, pairs=0)
    assert metrics["assistant_loss"] == metrics["stops"].replace("prompt", "conversation") == "no held-out conversation"
    assert "Not measured: no held-out conversation." in text
    assert "Not measured: no held-out pair." in text


def test_pairs_that_are_all_dropped_are_said_and_not_measured():
    nothing = {name: replace(of, pairs=np.zeros((0, 2)), loss=None) for name, of in measured(2.0).items()}
    metrics = figures(data(), nothing, ngrams(2.4), beta=0.1, new_tokens=64)
    assert metrics["preferences"] == "no held-out pair has two different answers within the context"
    assert metrics["assistant_loss"] == "no answer of a held-out conversation is left within the context"


def test_earlier_figures_that_are_missing_are_left_out():
    metrics, _ = report()
    text = layout.text(summary.summary_blocks(metrics, {}))
    assert "deduplication" not in text and "Records" not in text and "Bits per byte" in text


def test_a_loss_that_rose_is_not_called_lower():
    metrics, _ = report()
    worse = copy.deepcopy(metrics)
    worse["assistant_loss"]["sft"]["nats_per_token"] = 2.5
    assert "did not lower" in layout.text(summary.summary_blocks(worse, EARLIER))


def test_chosen_answers_that_became_less_likely_are_a_warning():
    metrics, _ = report()
    metrics["preferences"]["drift"]["chosen"] = -0.25
    text = layout.text(summary.summary_blocks(metrics, EARLIER))
    assert "Warning: the chosen answers of the held-out pairs lost 0.250 nats a token" in text
    metrics["preferences"]["drift"]["chosen"] = -0.1
    assert "Warning" not in layout.text(summary.summary_blocks(metrics, EARLIER))


def test_markdown_holds_the_same_numbers():
    metrics, text = report()
    page = layout.markdown(summary.summary_blocks(metrics, EARLIER))
    assert r"| manuals\|x |" in page and "| overall | 5.000 | 3.000 | 2.400 | 2.500 |" in page
    assert page.count("\n## ") + 1 == text.count("──\n") == 6


def test_plot_of_bits_sorts_models_as_the_table_does():
    template = json.loads((Path(__file__).parents[3] / ".dvc/plots/bars_by_model.json").read_text())
    for channel in ("yOffset", "color"):
        assert template["encoding"][channel]["sort"] == [*summary.BASELINES, *summary.MODELS]
