"""Models of the Llama family as transformers writes them are trained as what they are, or refused by name."""

import json
from itertools import pairwise

import pytest
import torch

from stages.contract import UserError
from stages.contract.params import load_params
from stages.size import plan_of
from stages.trainer.loop import export
from stages.trainer.loop.causal import CausalTrainer, prepare
from stages.trainer.loop.rows import PackedRows, collate
from stages.trainer.model import lora, models
from stages.trainer.plan import recipe
from tests.families import llama3_rope
from tests.trainer.wanted import CPU

ROW = 32
SMALL = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": ROW, "pad_token_id": 1, "bos_token_id": None,
    "eos_token_id": 2,
}  # fmt: skip
MODELS = [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"tie_word_embeddings": False}),
    ("llama", {"rope_parameters": llama3_rope(16)}),
    ("mistral", {"sliding_window": ROW}),
    ("qwen2", {}),
    ("qwen3", {"head_dim": 16}),
    ("smollm3", {}),
    ("olmo2", {}),
    ("gemma3_text", {"head_dim": 8, "sliding_window": ROW}),
]


@pytest.fixture(params=MODELS, ids=lambda of: of[0])
def folder(request, tmp_path):
    return saved(tmp_path / "init", *request.param)


def saved(folder, kind, changes):
    """A random model of ``kind``, written by transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | changes)).save_pretrained(folder)
    return folder


def loaded(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def test_the_loss_is_that_of_transformers_document_by_document(folder, rows):
    ours, theirs, dataset = loaded(folder), loaded(folder), PackedRows(rows, limit=4)
    shape = models.shape(folder)
    prepare(ours, recipe.resolve(CPU, shape, 4, ROW, load_params().trainer))
    batch = collate([dataset[i] for i in range(4)])
    loss, total, tokens = ours(**batch).loss, 0.0, 0
    for ids, labels, ends in zip(batch["input_ids"], batch["labels"], batch["cu_seqlens"], strict=True):
        for a, b in pairwise(ends.tolist()):
            if count := int((labels[a + 1 : b] != -100).sum()):
                total += theirs(input_ids=ids[None, a:b], labels=labels[None, a:b]).loss.item() * count
                tokens += count
    assert loss.item() == pytest.approx(total / tokens, abs=1e-5)
    uncounted = ("bias", "q_norm.weight", "k_norm.weight")
    if theirs.config.model_type == "gemma3_text":  # four norms a layer, of which two count
        uncounted += ("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight")
    biases = sum(p.numel() for name, p in theirs.named_parameters() if name.endswith(uncounted))
    assert shape.parameters == sum(p.numel() for p in theirs.parameters()) - biases
    lora.inject(theirs, 3)
    assert lora.parameters(shape, 3) == sum(p.numel() for p in theirs.parameters() if p.requires_grad)


def test_what_was_trained_is_a_model_of_the_same_kind(folder, rows, tokenizer, tmp_path):
    from transformers import TrainingArguments

    model = loaded(folder)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    chosen = recipe.resolve(CPU, models.shape(folder), 4, ROW, load_params().trainer)
    options = chosen.arguments() | {
        "output_dir": str(tmp_path), "max_steps": 2, "learning_rate": 3e-3, "report_to": [], "save_strategy": "no",
        "disable_tqdm": True, "remove_unused_columns": False,
    }  # fmt: skip
    trainer = CausalTrainer(
        model=model, recipe=chosen, train_dataset=PackedRows(rows), args=TrainingArguments(**options)
    )
    trainer.train()
    export.save_trained(trainer, tokenizer, lambda save, _: save(tmp_path / "out"))
    again = loaded(tmp_path / "out")
    assert type(again) is type(model)
    assert again.config.tie_word_embeddings == loaded(folder).config.tie_word_embeddings
    assert all(not torch.equal(weight, before[name]) for name, weight in again.named_parameters())


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [("gemma", {"head_dim": 8}, "a model of type 'gemma' cannot be trained here; there are llama, mistral, qwen2"),
     ("gpt2", {}, "a model of type 'gpt2' cannot be trained here"),
     ("mistral", {"sliding_window": 8}, "attends to 8 tokens at a time (sliding_window)"),
     ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "attends to 8 tokens"),
     ("llama", {"max_position_embeddings": 16}, "pack.row_tokens is 32, but the model in"),
     ("llama", {"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantized"),
     ("llama", {"num_hidden_layers": None}, "config.json does not describe a model: num_hidden_layers is missing")],
    ids=lambda value: value if isinstance(value, str) and len(value) < 9 else "",
)  # fmt: skip
def test_wrong_training_is_refused_before_loading(tmp_path, kind, changes, says):
    from transformers import AutoConfig

    given = AutoConfig.for_model(kind, **SMALL).to_dict() | changes
    (tmp_path / "config.json").write_text(json.dumps({name: v for name, v in given.items() if v is not None}))
    with pytest.raises(UserError) as error:
        plan_of(with_init(tmp_path), 128, 1e6)
    assert says in str(error.value)


def test_a_configuration_that_is_no_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json does not describe a model"):
        plan_of(with_init(tmp_path), 128, 1e6)


def test_the_plan_is_of_the_given_model(folder):
    plan = plan_of(with_init(folder), 128, 1e6)
    model = loaded(folder)
    assert plan.model["num_key_value_heads"] == model.config.num_key_value_heads
    assert plan.model["tie_word_embeddings"] == model.config.tie_word_embeddings


def test_model_without_tokenizer_is_named(tmp_path, tokenizer):
    with pytest.raises(UserError, match="tokenizer"):
        models.initial(saved(tmp_path / "bare", "llama", {}), tokenizer)


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_with_too_few_rows_grows_by_their_mean(tmp_path, tokenizer, tied):
    folder = saved(tmp_path, "llama", {"vocab_size": 500, "tie_word_embeddings": tied})
    tokenizer.save_pretrained(folder)
    assert models.initial(folder, tokenizer) == folder
    before, grown = loaded(folder), models.load_initial(folder, tokenizer)
    assert grown.config.vocab_size == 512 == plan_of(with_init(folder), 512, 1e6).model["vocab_size"]
    for name in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, name)().weight, getattr(grown, name)().weight
        assert torch.equal(new[:500], old) and torch.allclose(new[500:], old.mean(0).expand(12, -1))


def test_liger_is_for_llamas(tmp_path):
    from stages.trainer.model.conversions import KERNELS

    with pytest.raises(UserError, match="not of a qwen2"):
        KERNELS["liger"].apply(loaded(saved(tmp_path, "qwen2", {})))


def with_init(folder):
    params = load_params()
    pack = params.pack.model_copy(update={"row_tokens": ROW})
    return params.model_copy(update={"init": str(folder), "pack": pack})
