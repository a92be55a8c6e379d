"""Threads that wait for each other give way to other work, and change no byte."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAINED = """
import hashlib, os, stages, torch
print(os.environ.get("GOMP_SPINCOUNT"))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.SiLU(), torch.nn.Linear(512, 256))
optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=True)
for _ in range(5):
    optimizer.zero_grad()
    model(torch.randn(300, 256)).square().mean().backward()
    optimizer.step()
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest())
"""


def trained(**changes):
    """(GOMP_SPINCOUNT in a stage's process, hash of weights trained there by two threads)."""
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", TRAINED], cwd=ROOT, env=clean | {"OMP_NUM_THREADS": "2"} | changes, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_threads_spin_briefly_unless_the_environment_differs():
    ours, weights = trained()
    assert ours == "1000"
    assert trained(GOMP_SPINCOUNT="300000") == ["300000", weights]
    assert trained(OMP_WAIT_POLICY="passive") == ["None", weights]
