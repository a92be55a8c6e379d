"""The stage of parallel/test_sharding.py: a tiny model trained by two processes, in every way of ./ways."""

import atexit
import contextlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path

from stages.contract import Run, UserError, run_stage
from stages.contract.process import worker

VOCAB, ROW, BATCH, STEPS = 128, 32, 8, 10


def main(run: Run) -> None:
    from stages.trainer.parallel.launching import launch
    from stages.trainer.plan.hardware import detect_hardware

    ways = Path("ways").read_text().split()
    if worker.is_worker():
        if "user-error" in ways:
            raise UserError("trainer.optimizer: 'x' is not one of them.")
        if "bug" in ways and worker.rank() == 1:
            raise ZeroDivisionError("a bug of rank 1")
        if "abort-at-exit" in ways:
            ways.remove("abort-at-exit")
            atexit.register(os.abort)  # as a thread that is destroyed too late does
        for way in ways:
            train(run, way, 2)
    elif "TOY_ALONE" in os.environ:  # a variable: it changes no identity
        train(run, ways[0], 1)
    else:
        launch(run, detect_hardware(), 2, recipe_for(ways[0], 2))


def recipe_for(way: str, processes: int):
    from stages.contract.params import Trainer
    from stages.trainer.plan.recipe import Recipe

    known = {"one": "none", "fsdp": "fsdp", "sharded": "fsdp", "zero2": "zero2", "zero3": "zero3"}
    divided = known.get(way.removeprefix("taught-").removeprefix("mup-").removesuffix("-kto"), "ddp")
    sharding = divided if processes > 1 else "none"
    switches = {
        "communication": way if way in ("bf16", "powersgd") else "fp32", "local_steps": 2 if way == "local" else 1,
        "stochastic_rounding": False, "kernels": "torch", "optimizer": "adamw", "schedule": "cosine", "decay": 0.2,
        "skip_sigma": 0.0,
    }  # fmt: skip
    return Recipe(
        device="cpu", processes=processes, precision="fp32", attention="sdpa", masked=True, compile="none",
        checkpointing="none", micro_batch=2, accumulation=BATCH // 2 // processes, sharding=sharding, offload="none",
        memory={}, room=0.0, reasons={}, params=Trainer.model_construct(**switches),
    )  # fmt: skip


def train(run: Run, way: str, processes: int) -> None:
    from transformers import TrainingArguments, set_seed

    from stages.trainer.loop import export, fit
    from stages.trainer.parallel import sharding

    _forget_frameworks()
    set_seed(0)
    recipe = recipe_for(way, processes)
    run = replace(run, scratch=run.scratch / way)  # a Run of their own, or they would find each other's checkpoints
    run.scratch.mkdir(exist_ok=True)
    options = fit.training_arguments(run, 3e-3, 0.1) | recipe.arguments() | sharding.sharding_arguments(recipe)
    if way in ("zero3", "mup-zero3"):  # or weights as small as these stay whole
        options["deepspeed"]["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    kinds = {"kto": _on_pairs, "taught": _taught, "mup": _by_mup}
    trainer = next((make for name, make in kinds.items() if name in way.split("-")), _on_documents)(
        model=_model(), recipe=recipe, callbacks=_callbacks(),
        args=TrainingArguments(**options, max_steps=STEPS, max_grad_norm=1.0),
    )  # fmt: skip
    history = fit.fit(trainer, run, way)
    folder = run.out / way
    _keep_own_weights(trainer, folder, way)
    export.save_trained(trainer, _tokenizer(), lambda save, _: save(folder))
    for name in ("loss", "reference_point"):
        values = [entry[name] for entry in history if name in entry]
        (folder.parent / f"{way}-{worker.rank()}-{name}.json").write_text(json.dumps(values))


def _on_documents(**kwargs):
    from stages.trainer.loop.causal import CausalTrainer

    return CausalTrainer(train_dataset=_rows(), **kwargs)


def _by_mup(**kwargs):
    from stages.scaling.mup import Mup
    from stages.scaling.shapes import Shape

    return _on_documents(mup=Mup.of(Shape.of(kwargs["model"].config.to_dict()), base_width=8), **kwargs)


def _taught(**kwargs):
    from stages.trainer.objectives.distillation import Distillation, DistillationTrainer

    return DistillationTrainer(
        distillation=Distillation(_model(layers=3, seed=1), 0.5, 2.0), turn_end=5, train_dataset=_rows(), **kwargs
    )


def _on_pairs(**kwargs):
    """KTO, with a reference that finds every answer a little less likely than an untrained model."""
    import numpy as np

    from stages.corpus.chats.encoding import Pair, pack_pairs
    from stages.corpus.chats.mismatched import mismatched
    from stages.trainer.objectives.kto import KtoRows, KtoTrainer
    from stages.trainer.objectives.preference import paired

    draw, tokenizer = np.random.default_rng(0), _tokenizer()
    tokenizer.pad_token = "b"
    pairs = []
    for prompt, *answers in draw.integers(1, 5, (320, 3)):
        sides = [(draw.integers(4, 40, prompt + n).tolist(), np.arange(prompt, prompt + n)) for n in answers]
        pairs.append(Pair(*sides[0], *sides[1], cut=False))
    rows = pack_pairs(tokenizer, pairs, ROW, seed=0)
    both = [
        paired(kind, np.full(np.subtract(kind.cu_seqlens.shape, (0, 1)), -16, np.float32))
        for kind in (rows, mismatched(rows))
    ]
    return KtoTrainer(preference=preference("kto", 0.2), train_dataset=KtoRows(*both), **kwargs)


def preference(loss, beta, label_smoothing=0.0, gamma=0.0):
    """params.yaml's `dpo`, as far as a loss reads it."""
    from stages.contract.params import Dpo

    return Dpo.model_construct(loss=loss, beta=beta, label_smoothing=label_smoothing, gamma=gamma)


def _keep_own_weights(trainer, folder: Path, way: str) -> None:
    """Of each process, for what must be equal in all, or really divided."""
    import torch
    from safetensors.torch import save_file

    from stages.trainer.parallel import sharding

    if trainer.recipe.sharding == "fsdp":
        sharding.assert_sharded(trainer.model)
    elif way == "ddp":
        with contextlib.suppress(RuntimeError):
            sharding.assert_sharded(trainer.model)
            raise AssertionError("a replicated model passed for a sharded one")
    own = {n: getattr(p, "_local_tensor", p).detach().clone() for n, p in trainer.model.named_parameters()}
    save_file({n: t if t.numel() else torch.zeros(0) for n, t in own.items()}, f"{folder}-{worker.rank()}.safetensors")


def _forget_frameworks() -> None:
    """accelerate leaves word of the last trainer's framework in the environment; a stage has only one."""
    for name in [n for n in os.environ if n.startswith(("ACCELERATE_USE_", "FSDP_"))]:
        del os.environ[name]


def _callbacks() -> list:
    from transformers import TrainerCallback

    class Slow(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            time.sleep(float(os.environ.get("TOY_SECONDS", 0)))

    return [Slow()]


def _model(layers=2, seed=0, tied=False):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from stages.scaling.shapes import llama

    torch.manual_seed(seed)
    config = llama(VOCAB, heads=2, layers=layers, head_dim=16, row_tokens=ROW).config()
    config["tie_word_embeddings"] = tied
    return LlamaForCausalLM(LlamaConfig(**config, pad_token_id=1, use_cache=False))


def _rows():
    import numpy as np

    from stages.corpus.tokens.packing import pack
    from stages.trainer.loop.rows import PackedRows

    draw = np.random.default_rng(0)
    lengths = draw.integers(3, 40, 120)
    # Few different tokens: there is something to learn.
    return PackedRows(pack(draw.integers(4, 40, lengths.sum()).astype(np.uint16), lengths, ROW, pad=1, seed=0))


def _tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))


if __name__ == "__main__":
    run_stage("toy", main)
