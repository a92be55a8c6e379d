"""What the trainer is compared with: the same model, rows and device under other people's training loops."""

import os
import subprocess
import sys

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from stages.trainer.loop.rows import PackedRows


class Unpacked(torch.utils.data.Dataset):
    """The same tokens for a trainer that knows no packing."""

    def __init__(self, data: PackedRows):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        ids = self.data[i]["input_ids"]
        return {"input_ids": ids, "labels": ids}


def stock(model, data: PackedRows, arguments: TrainingArguments, clock) -> None:
    """transformers.Trainer, as it is."""
    clock.start()
    trainer = Trainer(model=model(), train_dataset=Unpacked(data), callbacks=[clock], args=arguments)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def litgpt(shape, data: PackedRows, batch: int, steps: int, clock) -> str:
    """litgpt's model, loss and Fabric, put together as its `pretrain` does; returns its version.

    Raises:
        ImportError: litgpt or lightning is not installed.
    """
    from importlib.metadata import version

    import lightning
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    clock.start()
    torch.set_float32_matmul_precision("high")  # as its main does
    fabric = lightning.Fabric(devices=1, precision="bf16-mixed")  # fp32 weights, as everywhere else here
    config = Config(
        block_size=shape.max_position_embeddings, vocab_size=shape.vocab_size, padded_vocab_size=shape.vocab_size,
        n_layer=shape.num_hidden_layers, n_head=shape.num_attention_heads, n_embd=shape.hidden_size,
        head_size=shape.head_dim, intermediate_size=shape.intermediate_size, rotary_percentage=1.0,
        parallel_residual=False, bias=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
    )  # fmt: skip
    with fabric.init_module():
        model = GPT(config)
    model = fabric.setup(torch.compile(model))
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True))
    loader = torch.utils.data.DataLoader(Unpacked(data), batch, num_workers=2, pin_memory=True)
    for _, rows in zip(range(steps), fabric.setup_dataloaders(loader), strict=False):
        targets = torch.nn.functional.pad(rows["input_ids"][:, 1:], (0, 1), value=-100)
        fabric.backward(chunked_cross_entropy(model(rows["input_ids"]), targets))
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.step()
    return version("litgpt")


def probe(size: str, batch: int, row_tokens: int) -> None:
    """The script PROBE, in a process of its own; it prints its line."""
    script = os.environ.get("PROBE")
    if script:
        name = {"374m": "350m", "1.26b": "1b"}[size]
        command = [sys.executable, script, "bare", name, str(batch), str(row_tokens)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout.strip() or done.stderr.strip()[-400:], flush=True)
