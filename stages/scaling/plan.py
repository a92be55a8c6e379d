"""Plan of a pretraining, out/size/plan.json: the model's shape and its schedule. Nothing depends on the machine."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PLAN = Path("out/size/plan.json")


@dataclass(frozen=True)
class Plan:
    """Shape of the model, and its schedule."""

    model: dict[str, Any]  # config.json of a transformers model
    parameters: int
    matmul_parameters: int  # without the embedding's, which takes part in no product
    tokens: int  # of the whole training
    unique_tokens: float  # of the data; infinite where only the budget is known
    epochs: float
    steps: int
    batch_rows: int  # rows a step
    batch_tokens: int  # tokens a step
    learning_rate: float  # at the peak
    flops: float  # of the training, 6 N per token
    flops_per_token: float  # attention included
    mup_base_width: int | None = None  # of `stages.scaling.mup`; None: the standard parametrization

    def write(self, path: Path) -> None:
        values = {name: value for name, value in asdict(self).items() if value is not None}
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")

    @classmethod
    def read(cls, path: Path = PLAN) -> "Plan":
        return cls(**json.loads(path.read_text()))
