"""A model folder that is not whole, or hostile, is refused by name: one line, at once, without running its code."""

import json
import os
import shutil
import struct
import time

import pytest
import torch

from stages.contract import UserError
from stages.trainer.model import models

VOCAB = 512


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """A tied Llama of two layers with its tokenizer, as `models.save_model` writes it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from stages.scaling.shapes import llama

    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    config = llama(VOCAB, heads=2, layers=2, head_dim=16, row_tokens=64).config() | {"tie_word_embeddings": True}
    models.save_model(LlamaForCausalLM(LlamaConfig(**config, pad_token_id=1)), tokenizer, folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'RUN')!r}, 'w')\nclass C: pass\nclass M(C): pass\n")
    return shutil.copytree(whole, tmp_path / "model", dirs_exist_ok=True)


def edited(file, *path, **changes):
    def damage(folder):
        content = json.loads((folder / file).read_text())
        inner = content
        for key in path:
            inner = inner[key]
        inner.update(changes)
        (folder / file).write_text(json.dumps(content))

    return damage


def config(**changes):
    return edited("config.json", **changes)


def weights(change):
    def damage(folder):
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def written(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def sharded(names, to="model-00001-of-00001.safetensors"):
    def damage(folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        content = names if names is not None else {"metadata": {}, "weight_map": {"model.norm.weight": to}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return damage


def pipe(file):
    return lambda folder: ((folder / file).unlink(), os.mkfifo(folder / file))


UP, NORM, EMBEDDING = "model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"
NAMED = {  # damage -> (what does it, what the line names)
    "no layer": (weights(lambda w: [w.pop(n) for n in list(w) if ".layers.1." in n]), "model.layers.1."),
    "no weight": (weights(lambda w: w.pop(UP)), f"{UP} is missing"),
    "no embedding": (weights(lambda w: w.pop(EMBEDDING)), EMBEDDING),
    "one more": (
        weights(lambda w: w.update({"model.evil.weight": torch.ones(2)})),
        "model.evil.weight is no part of it",
    ),
    "a layer more": (weights(lambda w: w.update({"model.layers.7.x": torch.ones(2)})), "model.layers.2."),
    "another shape": (weights(lambda w: w.update({NORM: torch.ones(31)})), f"{NORM} is [31] instead of [32]"),
    "scalar": (weights(lambda w: w.update({NORM: torch.tensor(1.0)})), f"{NORM} is []"),
    "integers": (weights(lambda w: w.update({NORM: torch.ones(32, dtype=torch.int64)})), f"{NORM} is of type I64"),
    "fp8": (weights(lambda w: w.update({NORM: torch.ones(32).to(torch.float8_e4m3fn)})), f"{NORM} is of type F8"),
    "NaN": (weights(lambda w: w[UP][3, 3].fill_(float("nan"))), f"{UP} holds values that are not finite"),
    "infinity": (weights(lambda w: w[EMBEDDING][0].fill_(float("inf"))), f"{EMBEDDING} holds"),
    "a head of its own": (weights(lambda w: w.update({"lm_head.weight": w[EMBEDDING] + 1})), "tie_word_embeddings"),
    "untied": (config(tie_word_embeddings=False), "lm_head.weight is missing"),
    "nothing": (weights(lambda w: w.clear()), "model.layers.0."),
    "ten million layers": (config(num_hidden_layers=10**7), "num_hidden_layers is '10000000'"),
    "more layers": (config(num_hidden_layers=9999), "model.layers.2.* are missing (num_hidden_layers: 9,999)"),
    "wide": (config(hidden_size=2**30), EMBEDDING),
    "large vocabulary": (config(vocab_size=10**9), EMBEDDING),
    "wide product": (config(intermediate_size=10**9), "down_proj"),
    "wide head": (config(head_dim=10**9), "k_proj"),
    "biased": (config(attention_bias=True), "q_proj.bias"),
    "qwen3": (config(model_type="qwen3"), "q_norm"),
    "many labels": (config(num_labels=10**9), "num_labels"),
    "quantized": (config(quantization_config={}), "quantized"),
    "own file": (config(transformers_weights="pytorch_model.bin"), "transformers_weights"),
    "own code": (
        config(model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}),
        "'evil'",
    ),
    "adapter": (written("adapter_config.json", b'{"base_model_name_or_path": "/etc"}'), "adapter_config.json"),
    "truncated": (lambda f: os.truncate(f / "model.safetensors", 20000), "model.safetensors is damaged"),
    "short": (lambda f: os.truncate(f / "model.safetensors", 100), "model.safetensors is damaged"),
    "empty": (written("model.safetensors", b""), "model.safetensors is damaged"),
    "endless header": (written("model.safetensors", struct.pack("<Q", 2**62) + b"{}"), "header too large"),
    "header a list": (written("model.safetensors", struct.pack("<Q", 2) + b"[]"), "model.safetensors is damaged"),
    "pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickles are not read"),
    "pipe": (pipe("model.safetensors"), "no model.safetensors"),
    "config a pipe": (pipe("config.json"), "config.json"),
    "index of nothing": (sharded({"metadata": {}, "weight_map": {}}), "model.layers.0."),
    "index of a missing file": (sharded(None, "nowhere.safetensors"), "nowhere.safetensors, which is not in"),
    "index outside": (sharded(None, "../model.safetensors"), "names '../model.safetensors'"),
    "index of a pickle": (sharded(None, "pytorch_model.bin"), "names 'pytorch_model.bin'"),
    **{
        f"index {odd!r}": (sharded(odd), "index.json is no index")
        for odd in ([], {}, {"weight_map": [1]}, {"weight_map": {"a": 1}})
    },
    **{
        f"hidden_size {odd!r}": (config(hidden_size=odd), "hidden_size is")
        for odd in ("32", 0, None, [32], 32.5, True, -1)
    },
    **{
        f"{name} {odd!r}": (config(**{name: odd}), "model")
        for name, odd in (
            ("rope_parameters", "x"),
            ("rope_parameters", {"rope_type": "x"}),
            ("hidden_act", "x"),
            ("rms_norm_eps", "x"),
            ("pad_token_id", 10**9),
            ("architectures", 5),
            ("id2label", [1]),
            ("layer_types", 5),
            ("num_attention_heads", 3),
        )
    },
    **{
        f"config {content[:9]!r}": (written("config.json", content), "config.json does not describe a model")
        for content in (b"", b"{}", b"[]", b"3", b"[" * 200_000, b'{"a":' * 50_000, "{}".encode("utf-16"), b"\0" * 99)
    },
    **{
        f"tokenizer {content[:9]!r}": (written("tokenizer.json", content), "tokenizer")
        for content in (b"", b"{}", b"[]", b"null", b"[" * 200_000, b"\xff{}")
    },
    **{
        f"tokenizer's model {change!r}"[:40]: (edited("tokenizer.json", "model", **change), "tokenizer")
        for change in (
            {"type": "Evil"},
            {"vocab": [1]},
            {"vocab": {"a": "b"}},
            {"vocab": {"a": 2**31}},
            {"vocab": {"a": -1}},
            {"merges": [["zz", "qq"]]},
            {"merges": 5},
        )
    },
    "a panic": (
        edited("tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "tokenizer",
    ),
    "tokenizer's own code": (
        edited("tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.C", None]}),
        "tokenizer",
    ),
    "tokenizer a pipe": (pipe("tokenizer.json"), "tokenizer.json"),
}
WHOLE = {
    "as it is": lambda folder: None,
    "bf16": weights(lambda w: w.update({name: x.bfloat16() for name, x in w.items()})),
    "the tied head too": weights(lambda w: w.update({"lm_head.weight": w[EMBEDDING].clone()})),
    "an old buffer": weights(lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})),
    "without a prefix": weights(lambda w: [w.update({n.removeprefix("model."): w.pop(n)}) for n in list(w)]),
}


@pytest.mark.parametrize("damage", NAMED)
def test_damaged_model_is_refused_by_name_in_one_line(folder, tmp_path, damage, capfd):
    change, named = NAMED[damage]
    change(folder)
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        models.load(folder)
    assert named in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert time.monotonic() - started < 10
    assert not (tmp_path / "RUN").exists()
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed and "panicked" not in printed


@pytest.mark.parametrize("change", WHOLE)
def test_whole_model_is_loaded_with_its_values(whole, folder, change):
    WHOLE[change](folder)
    model, expected = models.load(folder)[0], models.load(whole)[0].state_dict()
    near = {"atol": 1e-2, "rtol": 1e-2} if change == "bf16" else {"atol": 0, "rtol": 0}
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], **near)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_saved_model_has_the_mode_of_the_umask(whole, tmp_path, umask):
    model, tokenizer = models.load(whole)
    before = os.umask(umask)
    try:
        models.save_model(model, tokenizer, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o666 & ~umask}, modes
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= modes.keys()
