"""What sft and dpo write is a model to everyone else: transformers, its pipelines, lm-evaluation-harness."""

import functools
import json

import numpy as np
import pytest
import torch

from stages import dpo, sft
from stages.contract.params import load_params
from stages.corpus.chats.encoding import encode_pair, pack_chats, pack_pairs, render
from stages.corpus.tokens.vocabulary import TURN_END
from stages.evaluation.measuring.scoring import token_logprobs
from stages.scaling.shapes import Shape, llama
from stages.trainer.loop import export
from stages.trainer.loop.rows import PackedRows
from stages.trainer.model import models
from stages.trainer.objectives.preference import paired, reference_logps
from stages.trainer.plan import recipe
from tests.trainer.wanted import CPU

ROW = 64
QUESTION = [{"role": "user", "content": "Hello?"}]
ANSWER, WORSE = ({"role": "assistant", "content": text} for text in ("Hey!", "No."))


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    """A model that sft taught one answer, and the same after dpo: folders as the stages write them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    place = tmp_path_factory.mktemp("interop")
    torch.manual_seed(0)
    shape = llama(len(tokenizer), heads=2, layers=2, head_dim=16, row_tokens=ROW).config()
    base = LlamaForCausalLM(
        LlamaConfig(**shape, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    )
    talks = PackedRows(pack_chats(tokenizer, [[*QUESTION, ANSWER]] * 16, ROW, seed=0)[0])
    train(functools.partial(sft._trainer, load_params().sft), base, tokenizer, talks, 30, place / "sft")
    record = {"prompt": QUESTION, "chosen": [ANSWER], "rejected": [WORSE]}
    rows = pack_pairs(tokenizer, [encode_pair(tokenizer, record, ROW)] * 4, 2 * ROW, seed=0)
    reference, _ = models.load(place / "sft")
    logps = reference_logps(reference, PackedRows(rows), chosen(reference, PackedRows(rows)))
    model, _ = models.load(place / "sft")
    params = load_params().dpo
    train(functools.partial(dpo._pair_trainer, params), model, tokenizer, paired(rows, logps), 2, place / "dpo")
    return place


def chosen(model, rows):
    return recipe.resolve(CPU, Shape.of(model.config.to_dict()), len(rows), rows.row_tokens, load_params().trainer)


def train(make, model, tokenizer, rows, steps, out):
    from transformers import TrainingArguments

    how = chosen(model, rows)
    options = how.arguments() | {
        "output_dir": str(out), "max_steps": steps, "learning_rate": 1e-2 if steps > 2 else 1e-5, "report_to": [],
        "save_strategy": "no", "disable_tqdm": True, "remove_unused_columns": False, "seed": 0,
    }  # fmt: skip
    trainer = make(model, tokenizer, recipe=how, train_dataset=rows, args=TrainingArguments(**options))
    trainer.train()
    export.save_trained(trainer, tokenizer, lambda save, _: save(out))


@pytest.fixture(params=["sft", "dpo"])
def folder(request, folders):
    return folders / request.param


def test_transformers_loads_model_and_template_and_it_stops(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    asked = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = model.generate(**asked, max_new_tokens=40, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == f"Hey!{TURN_END}"
    # Of the model's folder alone; nothing says where to stop.
    said = pipeline("text-generation", model=str(folder), device="cpu")(QUESTION, max_new_tokens=40, do_sample=False)
    assert said[0]["generated_text"] == [*QUESTION, ANSWER]


def test_its_files_are_those_of_a_plain_checkpoint(folder):
    names = {file.name for file in folder.iterdir() if file.is_file()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["use_cache"] and "auto_map" not in config


def test_lm_eval_loads_it_by_its_path_and_scores_as_we_do(folder):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(folder), device="cpu", batch_size=2, dtype="float32")
    prompt = lm.apply_chat_template(QUESTION)
    assert prompt.endswith("<|im_start|>assistant\n")
    request = Instance("loglikelihood", {}, (prompt, f"Hey!{TURN_END}"), 0)
    ((score, _),) = lm.loglikelihood([request], disable_tqdm=True)
    model, tokenizer = models.load(folder)
    ids, written = render(tokenizer, [*QUESTION, ANSWER])
    at = np.array([written[0] - 1, *written])  # lm-eval counts a prompt's last spaces to what is scored
    assert score == pytest.approx(token_logprobs(model.eval(), [ids], [at])[0].sum(), abs=1e-4)
    until = {"until": [TURN_END], "max_gen_toks": 20, "do_sample": False}
    assert lm.generate_until([Instance("generate_until", {}, (prompt, until), 0)], disable_tqdm=True) == ["Hey!"]
