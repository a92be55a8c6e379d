"""Models of public families pass through the stages as what they are."""

import importlib
import json
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch

from stages.contract import UserError
from stages.contract.params import load_params
from stages.corpus.tokens.adoption import adopt, marks_of
from stages.corpus.tokens.packed_rows import load_rows
from stages.trainer.loop import export
from stages.trainer.model import models
from tests.corpus.helpers import jsonl, stage_run, table
from tests.families import FAMILIES, TEXTS, make_model

STAGES = ("tokenizer", "pack", "size", "pretrain", "chats", "sft")
ROW = 128


def logits(folder, ids):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model(input_ids=ids).logits, model.dtype


def write_untrained(model, tokenizer, folder, dtype="auto"):
    """What a stage does after its last step."""
    accelerator = SimpleNamespace(unwrap_model=lambda model: model)
    trainer = SimpleNamespace(model=model, accelerator=accelerator, is_fsdp_enabled=False, is_deepspeed_enabled=False)
    export.save_trained(trainer, tokenizer, lambda save, needed: save(folder), dtype)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_untrained_model_goes_out_as_it_came(name, tmp_path):
    make_model(name, tmp_path / "init")
    tokenizer, _ = adopt(tmp_path / "init")
    known = models.shape(tmp_path / "init").vocab_size
    write_untrained(models.load_initial(tmp_path / "init", tokenizer), tokenizer, tmp_path / "out")
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    before, after = logits(tmp_path / "init", ids), logits(tmp_path / "out", ids)
    assert torch.equal(before[0], after[0][..., :known]) and before[1] == after[1]
    assert after[0].shape[-1] >= len(tokenizer)
    if name != "llama3-base":
        template = "chat_template.jinja"
        assert (tmp_path / "out" / template).read_bytes() == (tmp_path / "init" / template).read_bytes()


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_export_dtype_decides(dtype, expected, tmp_path):
    make_model("qwen2", tmp_path / "init")
    tokenizer, _ = adopt(tmp_path / "init")
    write_untrained(models.load_initial(tmp_path / "init", tokenizer), tokenizer, tmp_path / "out", dtype)
    assert logits(tmp_path / "out", torch.tensor([[1, 2]]))[1] == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_a_public_model_passes_through_the_stages(name, tmp_path, monkeypatch):
    params = changed(load_params(), budget_flops=6 * 30_000 * 4 * ROW * 4)
    monkeypatch.chdir(tmp_path)
    make_model(name, tmp_path / "data/init")
    (tmp_path / "out/filter").mkdir(parents=True)
    pq.write_table(table([" ".join(TEXTS)] * 8), tmp_path / "out/filter/documents.parquet")
    for source in ("validation", "evals", "sft"):
        (tmp_path / "data" / source).mkdir()
    jsonl(tmp_path / "data/validation/a.jsonl", [{"text": text} for text in TEXTS])
    jsonl(tmp_path / "data/evals/a.jsonl", [{"task": "t", "query": "Which question is asked here and nowhere else?"}])
    talk = [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": "Fine, thank you."}]
    jsonl(tmp_path / "data/sft/a.jsonl", [{"messages": talk, "split": "train"}] * 8)
    for stage in STAGES:
        importlib.import_module(f"stages.{stage}").main(stage_run(stage, params, tmp_path))
    model, tokenizer = models.load(tmp_path / "out/sft")
    began, _ = adopt(tmp_path / "data/init")
    assert tokenizer.get_vocab() == began.get_vocab() and tokenizer.chat_template == began.chat_template
    marks, rows = marks_of(tokenizer), load_rows(tmp_path / "out/pack/train")
    assert rows.tokens[rows.tokens != marks.pad].max() < len(tokenizer)
    assert (rows.tokens == marks.begin).sum() >= 8 and (rows.tokens == marks.end).sum() >= 8
    assert model.config.model_type == FAMILIES[name][0]
    assert models.saved_dtype(tmp_path / "out/sft") == FAMILIES[name][-1]
    stops = json.loads((tmp_path / "out/sft/generation_config.json").read_text())["eos_token_id"]
    assert {marks.end, *stops} == {*stops} and len(stops) == len({*stops})


def changed(params, **top):
    return params.model_copy(
        update=top
        | {
            "pack": params.pack.model_copy(update={"row_tokens": ROW}),
            "sizing": params.sizing.model_copy(update={"batch_tokens": 2 * ROW, "learning_rate": 1e-3}),
            "sft": params.sft.model_copy(update={"batch_tokens": 2 * ROW}),
        }
    )


@pytest.mark.parametrize(
    ("damage", "says"),
    [({"config.json": {"model_type": "gpt2"}}, "a model of type 'gpt2' cannot be trained here"),
     ({"config.json": {"max_position_embeddings": 16}}, "pack.row_tokens is 128, but the model in"),
     ({"tokenizer.json": None}, "holds no tokenizer.json"),
     ({"model.safetensors": None}, "safetensors"),
     ({"chat_template.jinja": "{{ messages[0]['content'] }}"}, "prints no special token after the assistant's turn")],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_in_the_check(damage, says, tmp_path):
    from stages.check import check_initial

    make_model("qwen2", tmp_path)
    check_initial(tmp_path, ROW)
    for name, content in damage.items():
        path = tmp_path / name
        if content is None:
            path.unlink()
        elif isinstance(content, dict):
            path.write_text(json.dumps(json.loads(path.read_text()) | content))
        else:
            path.write_text(content)
    with pytest.raises(UserError) as error:
        check_initial(tmp_path, ROW)
    assert says in str(error.value) and "\n" not in str(error.value)
