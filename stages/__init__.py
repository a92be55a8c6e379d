"""The stages of dvc.yaml, one module each, and the rooms they call."""

import importlib.util
import os
import sys

if not all(map(importlib.util.find_spec, ("dvc", "prefect", "pydantic", "torch"))):
    sys.exit(
        f"{sys.executable} lacks packages of requirements.lock.\n"
        "Run `make run`, or `source .venv/bin/activate` before `dvc repro`."
    )

# Models and data are local. The Hugging Face libraries look for a hub when they are imported, TRL sends telemetry,
# and their progress bars are thousands of lines in a log; so this comes before any of them.
for _name in (
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_DATASETS_DISABLE_PROGRESS_BARS",
    "TQDM_DISABLE",
):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
