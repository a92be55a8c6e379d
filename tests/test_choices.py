"""A choice is a row of one table: what params.yaml takes, and says it takes, is what the tables hold."""

import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from stages.contract.params import Params
from stages.trainer.model.attention import BACKENDS
from stages.trainer.model.conversions import COMPILATION, FORMATS, KERNELS
from stages.trainer.model.recompute import MODES
from stages.trainer.objectives.preference import LOSSES
from stages.trainer.objectives.rewards import RULES
from stages.trainer.objectives.rollouts import ON_POLICY
from stages.trainer.optim.optimizers import OPTIMIZERS
from stages.trainer.optim.schedules import SCHEDULES
from stages.trainer.parallel.communication import COMMUNICATION
from stages.trainer.parallel.sharding import OFFLOADS, SHARDINGS
from stages.trainer.plan.curriculum import ORDERS

TABLES = {
    "trainer.attention": {"auto", *BACKENDS},
    "trainer.checkpointing": {"auto", *MODES},
    "trainer.communication": {*COMMUNICATION},
    "trainer.compile": {"auto", *COMPILATION},
    "trainer.kernels": {*KERNELS},
    "trainer.offload": {"auto", *OFFLOADS},
    "trainer.optimizer": {*OPTIMIZERS},
    "trainer.precision": {"auto", *FORMATS},
    "trainer.schedule": {*SCHEDULES},
    "trainer.sharding": {"auto", *SHARDINGS} - {"none"},  # one device shards nothing
    "pretrain.order": {*ORDERS},
    "dpo.loss": {*LOSSES, *ON_POLICY},
    "dpo.reward": {*RULES},
}


def choices(model=Params, prefix=""):
    """Dotted key -> the names it takes, of every parameter that is a choice."""
    found = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if get_origin(kind) is Literal:
            found[prefix + name] = {*get_args(kind)}
        elif hasattr(kind, "model_fields"):
            found |= choices(kind, f"{prefix}{name}.")
    return found


def test_every_choice_of_training_has_a_table():
    trained = {key for key in choices() if key.split(".")[0] in ("trainer", "pretrain", "sft", "dpo")}
    assert trained == TABLES.keys()


@pytest.mark.parametrize("key", TABLES)
def test_params_take_the_rows_of_the_table(key):
    assert choices()[key] == TABLES[key]


@pytest.mark.parametrize("key", choices())
def test_params_yaml_names_every_choice(key):
    section, _, name = key.partition(".")
    text = (Path(__file__).resolve().parents[1] / "params.yaml").read_text()
    block = text[re.search(rf"^{section}:", text, re.M).end() :].split("\n\n")[0]
    comment = re.search(rf"^  {name}:[^\n]*(?:\n {{10,}}#[^\n]*)*", block, re.M)[0]
    assert {word for word in choices()[key] if not re.search(rf"\b{word}\b", comment)} == set()
