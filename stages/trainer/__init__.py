"""The one trainer behind pretrain, sft and dpo: transformers' Trainer and TRL with our recipe and checkpoints.

Models and data are local: the libraries below are told so before any of them is imported, since they look for a
hub at import and TRL sends telemetry. Their progress bars are thousands of lines in a log; we print our own.
"""

import os

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
