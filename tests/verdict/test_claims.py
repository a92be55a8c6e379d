"""claims.yaml: a row for each technique of the tree, each with a figure or a reason, judged by its own rule."""

import re

import pytest

from stages.contract.errors import UserError
from verdict.claims import CLAIMS, Rule, judge, load_claims
from verdict.table import MEASUREMENTS, find_measurement

TREE = {
    "memory": "bf16 flash_attention checkpointing zero3_fsdp cpu_offload nvme_offload gradient_accumulation "
    "selective_recompute model_parallel",
    "compute": "flash_attention_2 flash_attention_3 compile triton_kernels custom_cuda xformers flex_attention",
    "data": "deduplication quality_filtering packing curriculum synthetic_data data_defaults",
    "optimizers": "adamw cosine clipping lion sophia shampoo schedule_free muon adam_mini",
    "scaling": "chinchilla mup progressive_depth progressive_length lottery_ticket nas",
    "precision": "bf16_quality fp8 int8 stochastic_rounding",
    "distributed": "fsdp deepspeed ring_all_reduce gradient_compression async_training",
    "infrastructure": "async_checkpointing fault_tolerance checkpoint_interval profiling monitoring automl",
    "post_training": "dpo instruction_tuning continual_pretraining ppo kto orpo_simpo",
    "headline": "headline_speed headline_memory headline_cost four_lines order_of_value tuned_adamw last_ten_percent",
}
ROWS = load_claims()  # which checks that every switch is an override that params.yaml takes


@pytest.mark.parametrize("branch", TREE)
def test_every_technique_of_the_tree_has_a_row(branch):
    assert {name for name in TREE[branch].split() if ROWS[name].branch != branch} == set()


def test_every_row_has_a_figure_or_a_reason():
    assert [name for name, row in ROWS.items() if not (row.measurement and row.rule) and not row.reason] == []


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurements_are_functions(name):
    assert find_measurement(name).__doc__


def test_every_measurement_has_a_row():
    assert {row.measurement for row in ROWS.values()} - {""} == MEASUREMENTS.keys()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("switch: {trainer.precision: bf16}", "switch: {trainer.precison: bf16}", "bf16: trainer.precison is no param"),
        ("metric: memory", "metric: weight", "rows.bf16.metric: 'weight' is not allowed"),
        ("measurement: step_pair", "measurement: step_pear", "measurement 'step_pear' is not one of step_pair"),
        ("rule: {confirmed: [null, -0.4], partly: [null, -0.1]}, ", "", "measurement step_pair needs a rule"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_one_line(tmp_path, old, new, said):
    text = CLAIMS.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "claims.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(said)) as error:
        load_claims(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict"),
    [
        (1.9, 2.0, 2.1, "partly"), (2.0, 2.1, 2.2, "confirmed"), (1.0, 1.05, 1.09, "refuted"),
        (1.2, 1.3, 1.4, "partly"), (1.05, 1.2, 1.3, "undecided"), (1.0, 1.5, 2.5, "undecided"),
    ],
)  # fmt: skip
def test_rule_to_verdict(low, value, high, verdict):
    assert judge(Rule(confirmed=(2.0, None), partly=(1.1, None)), low, value, high) == verdict
