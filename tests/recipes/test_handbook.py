"""Recipes in the form of the alignment-handbook's, and what becomes of them."""

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from stages.contract.params import load_params
from stages.recipes import __main__ as recipes
from stages.recipes import handbook, settings

ROOT = Path(__file__).resolve().parents[2]
SFT = """\
# a supervised recipe, old names
model_name_or_path: some-team/some-base-7b
torch_dtype: bfloat16
attn_implementation: flash_attention_2
use_peft: true
lora_r: 16
lora_alpha: 32
lora_target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
chat_template: "{% for message in messages %}{{ message }}{% endfor %}"
dataset_mixer:
  some-team/some-chats: 1.0
bf16: true
gradient_accumulation_steps: 2
gradient_checkpointing: true
learning_rate: 2.0e-05
lr_scheduler_type: cosine
logging_steps: 5
max_seq_length: 2048
num_train_epochs: 3
per_device_train_batch_size: 16
push_to_hub: true
seed: 42
warmup_ratio: 0.03
"""
DPO = """\
# a preference recipe, new names
dtype: bfloat16
dataset_mixture: {datasets: [{id: some-team/some-pairs, split: train, weight: 0.5}]}
beta: 0.05
loss_type: [apo_zero]
learning_rate: 5e-7
max_length: 1024
max_prompt_length: 512
num_train_epochs: 1
optim: rmsprop
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
lr_scheduler_type: linear
warmup_steps: 0.1
some_new_key: 1
"""
ORPO = """\
beta: 0.05
learning_rate: 5.0e-06
lr_scheduler_type: inverse_sqrt
max_length: 2048
per_device_train_batch_size: 1
output_dir: data/some-orpo-7b
optim: adamw_bnb_8bit
warmup_steps: 100
"""


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """(exit code, output, errors, params.yaml) of the command on a recipe in a folder with params.yaml."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)

    def run(recipe, *options, name="config.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(recipe)
        code = recipes.main([*options, name])
        printed = capsys.readouterr()
        return code, printed.out, printed.err, (tmp_path / "params.yaml").read_text()

    return run


def command(output: str) -> dict:
    """What the printed command line sets, as a shell and YAML read it."""
    words = shlex.split(output.strip().splitlines()[-1])
    assert words[:3] == ["dvc", "exp", "run"] and set(words[3::2]) == {"-S"}
    pairs = (word.split("=", 1) for word in words[4::2])
    return {param: YAML(typ="safe").load(value) for param, value in pairs}


def test_a_supervised_recipe(told):
    code, out, _, _ = told(SFT)
    assert code == 0 and "a recipe for sft" in out
    assert command(out) == {
        "sft.lora_rank": 16, "sft.learning_rate": 2e-5, "pack.row_tokens": 2048, "sft.epochs": 3,
        "sft.batch_tokens": 16 * 2 * 8 * 2048, "seed": 42, "sft.warmup": 0.03,
        "trainer.schedule": "cosine",
    }  # fmt: skip
    for old in ("torch_dtype (now dtype)", "max_seq_length (now max_length)", "warmup_ratio (now warmup_steps)"):
        assert old in out
    assert "which runs again: trainer.schedule, pack.row_tokens, seed." in out
    assert command(told(SFT, "--gpus", "1")[1])["sft.batch_tokens"] == 16 * 2 * 2048


def test_a_preference_recipe(told):
    _, out, _, _ = told(DPO)
    assert "a recipe for dpo" in out and "(now" not in out
    assert command(out) == {
        "dpo.beta": 0.05, "dpo.loss": "apo_zero", "dpo.learning_rate": 5e-7, "pack.row_tokens": 1024,
        "dpo.batch_pairs": 128,
    }  # fmt: skip
    assert "trainer.schedule has none of that name" in out and "trainer.optimizer has none of that name" in out
    assert "some_new_key: 1\n      - not a key that is known" in out
    assert 'data.preferences.weights is {"some-pairs*": 0.5}' in out
    assert 'data.sft.weights is {"some-chats*": 2}' in told(SFT.replace("some-chats: 1.0", "some-chats: 2.0"))[1]


@pytest.mark.parametrize("name", ["config.yaml", "recipes/some-7b/orpo/config_full.yaml"])
def test_an_orpo_recipe_has_keys_of_dpo_and_is_told_by_its_folder_or_its_name(told, name):
    _, out, _, _ = told(ORPO, name=name)
    assert command(out)["dpo.loss"] == "orpo"
    assert "dpo.warmup is a share of the steps, whose number the recipe does not say" in out


def test_steps_of_warmup_are_a_share_of_the_steps_there_are(told):
    assert command(told(ORPO + "max_steps: 400\n")[1])["dpo.warmup"] == 0.25


def test_every_key_is_told_once_in_the_recipes_order(told):
    for recipe in (SFT, DPO, ORPO):
        _, out, _, _ = told(recipe)
        assert re.findall(r"^  (\w+)", out, re.MULTILINE) == list(YAML(typ="safe").load(recipe))


def test_written_params_are_those_of_the_command_and_nothing_else_changes(told):
    before = (ROOT / "params.yaml").read_text()
    wanted = command(told(DPO)[1])
    _, _, _, after = told(DPO, "--write")
    loaded = load_params("params.yaml")
    for param, value in wanted.items():
        section, name = param.split(".")
        assert getattr(getattr(loaded, section), name) == value
    shutil.copy(ROOT / "params.yaml", "by_dvc.yaml")
    apply_overrides("by_dvc.yaml", [f"{param}={recipes.scalar(value)}" for param, value in wanted.items()])
    assert load_params("by_dvc.yaml") == loaded
    pairs = list(zip(before.splitlines(), after.splitlines(), strict=True))
    changed = [(a, b) for a, b in pairs if a != b]
    assert len(changed) == len(wanted)
    for a, b in changed:
        assert a.split(":")[0] == b.split(":")[0] and a.partition("#")[2] == b.partition("#")[2]
    assert "says all of that already" in told(DPO, "--write")[1]


@pytest.mark.parametrize("folder", ["some chats", "chats, #1: {a}", "chats"])
def test_local_data_and_models_are_taken(told, tmp_path, folder):
    for name in (folder, "model", "others"):
        (tmp_path / name).mkdir()
    _, out, _, _ = told(f"dataset_name: {json.dumps(folder)}\nmodel_name_or_path: model\n", name="sft/config.yaml")
    assert command(out) == {"data.sft.path": folder, "init": "model"}
    shutil.copy("params.yaml", "by_dvc.yaml")
    apply_overrides("by_dvc.yaml", shlex.split(out.strip().splitlines()[-1])[4::2])
    assert load_params("by_dvc.yaml").data.sft.path == folder
    for name in (folder, "others", folder):  # what was written can be written over
        _, _, _, after = told(f"dataset_name: {json.dumps(name)}\n", "--write", name="sft/config.yaml")
        assert load_params("params.yaml").data.sft.path == name and after.count("# messages") == 1
        assert load_params("params.yaml").data.sft.files == "**/*"


@pytest.mark.parametrize(
    ("recipe", "says"),
    [("beta: -1\n", "dpo.beta: -1 is not allowed. Input should be greater than 0."),
     ("beta: 0.1\nlearning_rate: fast\n", "dpo.learning_rate: 'fast' is not allowed."),
     ("learning_rate: [1]\n", "sft.learning_rate: [1] is not allowed."),
     ("per_device_train_batch_size: 0\n", "per_device_train_batch_size: 0 is not allowed."),
     ("warmup_ratio: soon\n", "warmup_ratio: 'soon' is not allowed."),
     ("warmup_ratio: 1.5\n", "sft.warmup: 1.5 is not allowed."),
     ("use_peft: true\nlora_r: many\n", "lora_r: 'many' is not allowed."),
     ("max_length: 1\nmax_seq_length: 2\n", "max_seq_length and max_length are one setting"),
     ("name: me\nages: [1]\n", "none of its keys is one of a recipe: name, ages."),
     ("{}\n", "none of its keys is one of a recipe: it is empty."),
     ("- 1\n", "expected keys and values, found list."),
     ("a: [1\n", "not valid YAML:")],
)  # fmt: skip
def test_a_mistake_is_one_line_with_the_recipe_and_leaves_params_alone(told, recipe, says):
    code, out, err, after = told(recipe, "--write")
    assert code == 1 and out == "" and err.startswith("config.yaml: ") and says in err and len(err.splitlines()) == 1
    assert after == (ROOT / "params.yaml").read_text()


def test_a_missing_recipe_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert recipes.main([str(tmp_path / "none.yaml")]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'none.yaml'}: No such file or directory.\n"


def test_old_names_are_gone_from_trl_and_the_new_ones_are_there():
    from transformers import TrainingArguments
    from trl import DPOConfig, ModelConfig, SFTConfig

    there = {
        f.name for kind in (TrainingArguments, DPOConfig, SFTConfig, ModelConfig) for f in dataclasses.fields(kind)
    }
    there |= {"dataset_mixture"}  # of the handbook's own scripts
    assert not there & settings.NOW.keys()
    assert there >= set(settings.NOW.values()) and there >= handbook.RULES.keys() - {"dataset_name"}
    assert there >= (settings.SAME.keys() | settings.CHOICES.keys()) - {"simpo_gamma"}


def test_null_is_what_is_not_set(told):
    _, out, _, _ = told(DPO.replace("max_length: 1024", "max_length: null") + "use_peft: false\nlora_r: null\n")
    assert "max_length: None\n      - not set there" in out and "pack.row_tokens" not in command(out)


@pytest.mark.parametrize("name", ["2024-01-01", "007", "true", "a b", 'q"uote'])
def test_a_name_that_yaml_reads_as_something_else_is_quoted(tmp_path, name):
    text = (ROOT / "params.yaml").read_text()
    for value in (name, "data/init", name):  # one after the other: what was quoted is replaced whole
        text = recipes.rewritten(text, {"init": value})
        assert YAML(typ="safe").load(text)["init"] == value


def test_the_nearest_folder_says_what_a_recipe_trains(tmp_path):
    assert handbook.objective({}, tmp_path / "dpo/old/sft/config.yaml") == "sft"
    assert handbook.objective({}, tmp_path / "sft/config_dpo.yaml") == "dpo"


def test_a_path_through_a_file_is_told_in_a_line(capsys):
    assert recipes.main([str(ROOT / "params.yaml/x")]) == 1
    assert capsys.readouterr().err.endswith("params.yaml/x cannot be read: Not a directory.\n")
