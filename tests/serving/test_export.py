"""An export says what the model says: to transformers, to llama.cpp, and in its files."""

import importlib.util
import json
import re

import numpy as np
import pytest
import torch
from tokenizers import Regex, pre_tokenizers

from serving import card, export, gguf_file
from stages.contract.errors import UserError
from stages.corpus.tokens.vocabulary import CHAT_TEMPLATE
from stages.trainer.model import models
from tests.families import llama3_rope

TEXT = "The old man's 1984 boats:\n\n  Hello, wörld!  "
TALK = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hey!\n"},
]
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": 0,
    "pad_token_id": 1,
}  # fmt: skip
FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "llama, long context": {"model_type": "llama", "rope_parameters": llama3_rope(32), "attention_bias": True},
    "mistral": {"head_dim": 32, "sliding_window": 64},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "smollm3": {},
}


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("export") / "ours"
    export.export(folder, target, "bf16", "5GB", ["f32", "bf16", "q8_0"], "Apache-2.0")
    return target


@pytest.fixture(params=FAMILIES)
def family(request, tokenizer, tmp_path):
    """A folder with a random model of each family, whose values are large enough to be told apart."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {"model_type": request.param} | SMALL | {"vocab_size": len(tokenizer) + 8} | FAMILIES[request.param]
    config = AutoConfig.for_model(**settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, value in model.named_parameters():
        torch.nn.init.normal_(value, 1.0 if "norm" in name else 0.0, 0.2)
    models.save_model(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def logits(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def test_transformers_reads_it_in_bf16_with_the_same_weights(folder, exported):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(exported)
    ours, tokenizer = models.load(folder, dtype="bfloat16")
    ids = tokenizer(TEXT).input_ids
    assert model.dtype == torch.bfloat16 and AutoTokenizer.from_pretrained(exported)(TEXT).input_ids == ids
    np.testing.assert_array_equal(logits(model, ids), logits(ours, ids))


def test_files_have_the_forms_that_older_releases_know(exported):
    settings, config, generation = (
        json.loads((exported / f"{name}.json").read_text())
        for name in ("tokenizer_config", "config", "generation_config")
    )
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and settings["model_max_length"] == 64
    assert isinstance(settings["additional_special_tokens"], list) and "extra_special_tokens" not in settings
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert (config["torch_dtype"], config["rope_theta"]) == ("bfloat16", 10000.0)
    assert len(generation["eos_token_id"]) == 2
    assert "generation %}" not in (exported / "chat_template.jinja").read_text()
    assert {file.stat().st_mode & 0o444 for file in exported.iterdir()} == {0o444}


@pytest.mark.parametrize("opening", [True, False])
def test_the_plain_template_prints_the_same(tokenizer, opening):
    plain = export.plain_template(CHAT_TEMPLATE)
    assert "generation %}" not in plain
    said = [
        tokenizer.apply_chat_template(TALK, chat_template=one, tokenize=False, add_generation_prompt=opening)
        for one in (CHAT_TEMPLATE, plain)
    ]
    assert said[0] == said[1]


def test_shards_are_read_back(folder, tmp_path):
    export.export(folder, tmp_path / "parts", "fp32", "1MB", ["none"], "")
    assert not list((tmp_path / "parts").glob("*.gguf"))
    models.load(tmp_path / "parts")


def test_the_card_names_license_and_files(exported):
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlicense: Apache-2.0\n")
    assert all(f"ours/ours-{kind}.gguf" in card for kind in ("f32", "bf16", "q8_0"))


def test_an_export_is_not_replaced_without_force(folder, exported, capsys):
    arguments = ["--model", str(folder), "--to", str(exported), "--gguf", "none"]
    assert export.main(arguments) == 1
    assert capsys.readouterr().err.startswith(f"error: {exported} exists. Name another folder with --to")


def test_q8_0_is_within_half_a_step_of_the_weights(exported):
    import gguf

    exact, rounded = (
        {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(exported / file).tensors}
        for file in ("ours-f32.gguf", "ours-q8_0.gguf")
    )
    assert exact.keys() == rounded.keys()
    for name, values in exact.items():
        assert np.abs(values - rounded[name]).max() <= np.abs(values).max() / 127 * 0.51, name


def test_llama_cpp_computes_the_same_logits_in_every_family(family, tokenizer, tmp_path):
    model, _ = models.load(family)
    gguf_file.write_gguf(family, tokenizer, CHAT_TEMPLATE, tmp_path / "model.gguf", "f32")
    llama = engine(tmp_path / "model.gguf")
    ids = tokenizer(TEXT).input_ids
    assert llama.tokenize(TEXT.encode(), add_bos=False, special=False) == ids
    llama.eval(ids)
    np.testing.assert_allclose(np.array(llama.scores[: len(ids)]), logits(model, ids), atol=2e-3, rtol=1e-3)


def test_llama_cpp_answers_and_ends_by_the_template(exported):
    llama = engine(exported / "ours-f32.gguf")
    answer = llama.create_chat_completion([{"role": "user", "content": "Hello?"}], temperature=0, max_tokens=20)
    assert answer["choices"][0]["message"]["content"] == "Hey!"
    assert answer["choices"][0]["finish_reason"] == "stop"


def engine(path):
    """llama.cpp in fp32; skips the test where it is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed: .venv/bin/uv pip install llama-cpp-python==0.3.36")
    from llama_cpp import Llama

    return Llama(
        str(path), n_ctx=128, n_threads=1, logits_all=True, verbose=False, type_k=0, type_v=0, flash_attn=False
    )


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([pre_tokenizers.ByteLevel(add_prefix_space=False)], "gpt-2"),
        ([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)], "smollm"),
        *((
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
            name,
        ) for pattern, name in gguf_file.PATTERNS.items()),
        ([pre_tokenizers.Split(Regex(r"\w+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)], None),
        ([pre_tokenizers.Metaspace()], None),
    ],
)  # fmt: skip
def test_the_pattern_of_words_has_llama_cpps_name(tokenizer, tmp_path, steps, name):
    from tokenizers import Tokenizer

    other = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    other.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    other.save(str(tmp_path / "tokenizer.json"))
    if name:
        assert gguf_file.pretokenizer(tmp_path) == name
    else:
        with pytest.raises(UserError, match=re.escape("has no name in llama.cpp")):
            gguf_file.pretokenizer(tmp_path)


@pytest.fixture
def root(folder, tmp_path, monkeypatch):
    """A repository with a model, its lock, its data and its figures."""
    import subprocess
    from shutil import copytree

    copytree(folder, tmp_path / "out/sft")
    data = "".join(f"  {name}: {{path: data/{name}}}\n" for name in ("pretrain", "validation", "sft", "preferences"))
    lock = "stages:\n  pack:\n    deps:\n    - path: data/pretrain\n      md5: 0123.dir\n"
    for name, text in {"params.yaml": f"data:\n{data}", "dvc.lock": lock, ".gitignore": "out\n"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "reports/eval").mkdir(parents=True)
    (tmp_path / "reports/eval/summary.md").write_text("## Bits per byte\n\n| base | sft |\n|---|---|\n| 2.4 | 2.5 |\n")
    git = ["git", "-c", "user.name=T", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "params.yaml", "dvc.lock", ".gitignore"], ["commit", "-qm", "1"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("current", [True, False])
def test_the_card_has_data_figures_and_commit(root, monkeypatch, current):
    import polars as pl

    monkeypatch.setattr(card, "is_current", lambda root: current)
    (root / "out/filter").mkdir()
    pl.DataFrame({"source": ["books", "books", "web"]}).write_parquet(root / "out/filter/documents.parquet")
    text = card.card(root / "out/sft", "ours", "bfloat16", "MIT", [])
    assert "| `data.pretrain` | `data/pretrain` | 0123.dir |" in text and "| books | 2 |" in text
    assert "data.preferences" not in text  # sft has not seen them
    assert ("| 2.4 | 2.5 |" in text and "the column sft" in text) == current
    commit = text.partition("git switch --detach ")[2].partition("\n")[0]
    assert len(commit) == 40
    (root / "params.yaml").write_text("data: {}\n")
    assert "had uncommitted changes" in card._origin(root)
