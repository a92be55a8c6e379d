"""Every way through the trainer that a CPU can go gives the loss of transformers' own, on the same packed rows."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages.contract.errors import UserError
from stages.scaling.shapes import Shape
from stages.trainer.loop.causal import CausalTrainer, prepare
from stages.trainer.loop.export import release
from stages.trainer.loop.rows import PackedRows, collate
from stages.trainer.plan import recipe
from tests.trainer.wanted import CPU, adamw

STEPS = 8
ROOT = Path(__file__).resolve().parents[3]


def train(tiny, rows, tmp_path, steps=STEPS, extra=None, limit=None, resume=None, emulated="", **switches):
    """(trainer, losses) after ``steps`` steps of 4 rows, of the first ``limit``; ``resume``: a checkpoint's folder;
    ``emulated``: a precision that stages refuse on a CPU."""
    from transformers import TrainingArguments, set_seed

    set_seed(0)
    model = tiny()
    row_tokens = rows.tokens.shape[1]
    wanted = adamw(**switches)
    chosen = recipe.resolve(CPU, Shape.of(model.config.to_dict()), 4, row_tokens, wanted)
    chosen = replace(chosen, precision=emulated or chosen.precision)
    trainer = CausalTrainer(
        model=model, recipe=chosen, train_dataset=PackedRows(rows, limit), **extra or {},
        args=TrainingArguments(**chosen.arguments() | {
            "output_dir": str(tmp_path), "max_steps": steps, "logging_steps": 1, "learning_rate": 3e-3, "report_to": [],
            "warmup_steps": 2, "save_strategy": "no", "disable_tqdm": True, "remove_unused_columns": False,
            "weight_decay": 0.1, "logging_nan_inf_filter": False,
        }),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def reference(tiny, rows, tmp_path_factory):
    """Losses of transformers' Trainer and model, each document alone in its mask by position_ids."""
    from transformers import Trainer, TrainingArguments, set_seed

    class Positions(PackedRows):
        def __getitem__(self, i):
            return {k: v for k, v in super().__getitem__(i).items() if k != "cu_seqlens"}

    set_seed(0)
    trainer = Trainer(
        model=tiny(), train_dataset=Positions(rows),
        args=TrainingArguments(
            str(tmp_path_factory.mktemp("stock")), per_device_train_batch_size=4, max_steps=STEPS, logging_steps=1,
            learning_rate=3e-3, report_to=[], warmup_steps=2, save_strategy="no", disable_tqdm=True, use_cpu=True,
            lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.1}, weight_decay=0.1,
            remove_unused_columns=False, dataloader_pin_memory=False,
        ),
    )  # fmt: skip
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    "switches",
    [{}, {"attention": "eager"}, {"checkpointing": "full"}, {"checkpointing": "selective"},
     {"compile": "layers", "checkpointing": "selective"}],
    ids=lambda s: ",".join(s.values()) or "default",
)  # fmt: skip
def test_what_changes_speed_or_memory_changes_no_loss(tiny, rows, tmp_path, reference, switches):
    _, losses = train(tiny, rows, tmp_path, **switches)
    assert losses == pytest.approx(reference, abs=2e-4)


@pytest.mark.parametrize(
    ("switches", "near"),
    [({"precision": "bf16"}, 0.02), ({"emulated": "fp8"}, 0.1), ({"emulated": "int8"}, 0.1),
     ({"precision": "bf16", "stochastic_rounding": True}, 0.1)],
    ids=lambda s: "".join(map(str, s.values())) if isinstance(s, dict) else "",
)  # fmt: skip
def test_low_precision_stays_near(tiny, rows, tmp_path, reference, switches, near):
    trainer, losses = train(tiny, rows, tmp_path, **switches)
    assert losses == pytest.approx(reference, abs=near)
    moved = [n for n, p in trainer.model.named_parameters() if p.grad is None and p.requires_grad]
    before = dict(tiny().named_parameters())
    still = [n for n, p in trainer.model.named_parameters() if torch.equal(p.float(), before[n].float())]
    assert still == [], f"never trained: {still}; {moved}"


@pytest.mark.parametrize("optimizer", ["lion", "muon", "adam_mini", "sophia", "shampoo", "schedule_free"])
def test_every_optimizer_trains(tiny, rows, tmp_path, optimizer):
    schedule = "constant" if optimizer == "schedule_free" else "wsd"
    _, losses = train(tiny, rows, tmp_path, steps=16, limit=4, optimizer=optimizer, schedule=schedule)
    assert losses[-1] < losses[0] - 0.05


def test_a_profile_says_where_the_time_goes(tiny, rows, tmp_path):
    from stages.trainer.loop.profiling import Profile

    train(tiny, rows, tmp_path, extra={"callbacks": [Profile(tmp_path / "profile")]})
    assert (tmp_path / "profile/trace.json").stat().st_size > 1000
    assert "aten::mm" in (tmp_path / "profile/kernels.txt").read_text()


def test_growing_rows_keep_the_tokens_and_learn(tiny, rows, tmp_path):
    halves = {"row_parts": lambda step: 2 if step < 4 else 1}
    _, losses = train(tiny, rows, tmp_path, steps=12, limit=4, extra=halves)
    assert losses[-1] < losses[0] - 0.05


def test_released_it_is_a_plain_model_again(tiny, rows, tmp_path):
    trainer, _ = train(tiny, rows, tmp_path, steps=2)
    release(trainer.model)
    trainer.model.save_pretrained(tmp_path / "model")
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.arange(4, 20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits)


@pytest.mark.parametrize(
    ("switches", "says"),
    [({"kernels": "liger"}, "liger needs a GPU"),
     ({"attention": "flash4"}, "flash4 needs a CUDA device"),
     ({"precision": "fp8_rowwise"}, "fp8_rowwise needs a GPU"),
     ({"precision": "int8"}, "int8 needs a GPU"),
     ({"optimizer": "muon", "sharding": "zero2"}, "muon needs whole parameters"),
     ({"offload": "cpu", "sharding": "fsdp"}, "fsdp has no offload"),
     ({"stochastic_rounding": True, "precision": "fp32"}, "stochastic_rounding: needs bf16")],
    ids=lambda s: "",
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_line(tiny, rows, tmp_path, switches, says):
    with pytest.raises(UserError, match=says):
        train(tiny, rows, tmp_path, **switches)


def test_preflight_says_what_becomes_of_auto(tmp_path, monkeypatch, capsys):
    from stages.trainer.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stages.trainer"])
    text = re.sub(r"budget_flops: \S+", "budget_flops: 1e10", (ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(text)
    assert main() == 0
    printed = capsys.readouterr().out
    assert "attention" in printed and "tokens/s" in printed
    (tmp_path / "params.yaml").write_text(text.replace("kernels: torch", "kernels: liger"))
    assert main() == 1
    assert capsys.readouterr().err == "trainer.kernels: liger needs a GPU. Here: torch.\n"


def check_that_no_number_of_documents_compiles_again(model, rows, hardware, **switches):
    data, row_tokens = PackedRows(rows), rows.tokens.shape[1]
    wanted = adamw(compile="layers", **switches)
    prepare(model, recipe.resolve(hardware, Shape.of(model.config.to_dict()), 4, row_tokens, wanted))
    batches = [collate([data[i] for i in range(k, k + 4)]) for k in range(0, 20, 4)]
    assert len({batch["documents"] for batch in batches}) > 2
    device = hardware.device
    torch._dynamo.reset()
    for k, batch in enumerate(batches):
        batch = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
        # The second may compile once more: it shows which sizes change.
        with torch._dynamo.config.patch(error_on_recompile=k > 1):
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = model(**batch).loss
            loss.backward()


def test_recomputed_layers_compile_once_for_any_documents(tiny, rows, monkeypatch):
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part, **kw: compiled(part, **kw, backend="aot_eager"))
    check_that_no_number_of_documents_compiles_again(tiny(), rows, CPU, checkpointing="full")


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("backend", ["flex", "varlen", "flash4"])
def test_so_on_a_gpu_by_every_kernel_that_masks(rows, backend, checkpointing):
    from transformers import LlamaConfig, LlamaForCausalLM

    from stages.scaling.shapes import llama
    from stages.trainer.model import attention
    from stages.trainer.plan import hardware

    if attention.unusable(backend):
        pytest.skip(f"{attention.BACKENDS[backend].package} cannot be imported")
    config = llama(128, heads=2, layers=2, head_dim=64, row_tokens=rows.tokens.shape[1]).config()
    model = LlamaForCausalLM(LlamaConfig(**config, use_cache=False)).cuda()
    check_that_no_number_of_documents_compiles_again(
        model, rows, hardware.detect_hardware(), attention=backend, checkpointing=checkpointing
    )


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "flex", "varlen"])
def test_a_step_does_not_wait_for_the_device(rows, tmp_path, backend):
    """From the third step on, of which none is logged, nothing is copied to or from the host in a blocking way."""
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments

    from stages.scaling.shapes import llama
    from stages.trainer.plan import hardware

    class Strict(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            torch.cuda.set_sync_debug_mode("error" if 2 <= state.global_step < 8 else "default")

    row_tokens = rows.tokens.shape[1]
    shape = llama(128, heads=2, layers=2, head_dim=64, row_tokens=row_tokens)
    wanted = adamw(attention=backend)
    chosen = recipe.resolve(hardware.detect_hardware(), shape, 4, row_tokens, wanted)
    trainer = CausalTrainer(
        model=LlamaForCausalLM(LlamaConfig(**shape.config(), use_cache=False)), recipe=chosen,
        train_dataset=PackedRows(rows), callbacks=[Strict()],
        args=TrainingArguments(**chosen.arguments() | {
            "output_dir": str(tmp_path), "max_steps": 10, "logging_steps": 10, "report_to": [], "save_strategy": "no",
            "disable_tqdm": True, "remove_unused_columns": False, "logging_nan_inf_filter": False,
        }),
    )  # fmt: skip
    try:
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.global_step == 10
