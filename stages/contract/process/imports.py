"""Keep Hugging Face's libraries from importing packages that no stage uses: 9 of 19 s of CPU before a first step."""

import sys
from typing import Any, cast

# Functions of transformers.utils, and who asks them: its Trainer, for a kind of rows that ours are not; losses of
# object detection; assisted generation; models that torchao has quantized. What of these we use, we import ourselves.
UNUSED = ("is_datasets_available", "is_scipy_available", "is_sklearn_available", "is_torchao_available")


def lighten_transformers() -> None:
    """Let transformers not find the packages of `UNUSED`. To be called before it imports a model."""
    from transformers import utils

    for name in UNUSED:
        setattr(utils, name, _never)


def lighten_accelerate() -> None:
    """Let accelerate import neither boto3 nor, only to ask whether a model is its engine, DeepSpeed with MLflow."""
    modules = cast("dict[str, Any]", sys.modules)
    hidden = modules.setdefault("boto3", None) is None
    from accelerate.utils import other

    if hidden:
        del modules["boto3"]
    other.is_deepspeed_available = lambda: "deepspeed" in sys.modules


def _never(*_: object) -> bool:
    return False
