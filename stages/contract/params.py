"""The typed form of params.yaml. Values are in that file only: no field here has a default, except `Source.fields`."""

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from stages.contract.errors import UserError, explain_invalid, shorten
from stages.contract.identity import hidden_from_run_cache
from stages.contract.yaml_file import check_plain, parse_yaml, read_text

MOST = 10**12  # of anything that is counted or measured
MOST_FLOPS = 1e30  # ten thousand times what the largest models of 2026 were trained with
PATTERN = "*?["


def _affordable(flops: float) -> float:
    if flops > MOST_FLOPS:
        tokens = 20 * math.sqrt(flops / 6 / 20)  # Hoffmann et al. 2022
        raise ValueError(
            f"{flops:.3g} is too large for any data: it would be spent on {tokens:.2g} tokens. Lower budget_flops; "
            f"at most {MOST_FLOPS:g} is taken."
        )
    return flops


PositiveInt = Annotated[int, Field(gt=0, le=MOST)]
PositiveFloat = Annotated[float, Field(gt=0, le=MOST)]
Natural = Annotated[int, Field(ge=0, le=MOST)]
NonNegative = Annotated[float, Field(ge=0, le=MOST)]
Budget = Annotated[float, Field(gt=0), AfterValidator(_affordable)]
Share = Annotated[float, Field(ge=0, le=1)]
Weights = dict[str, Annotated[float, Field(ge=0, le=100)]]
Phrases = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=32)]
GateMetric = Annotated[str, Field(pattern=r"^(bits_per_byte|assistant_loss|preferences|tasks\.[^.].*\.[^.]+)$")]
Warmup = Annotated[float, Field(ge=0, lt=1)]  # share of the steps
Place = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]  # a path


class Section(BaseModel):
    """A section of params.yaml: unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Source(Section):
    """A file or a folder, a glob over the folder's files, and other names of fields: ours -> the data's.

    ``fields`` is the one value with a default: older params.yaml have none.
    """

    path: Place
    files: str
    fields: dict[str, Annotated[str, Field(min_length=1)]] = {}


class Mixture(Source):
    """A source whose files are trained on more or less often: pattern of a file's path -> factor."""

    weights: Weights


class Data(Section):
    pretrain: Source
    quality: Source
    validation: Source
    sft: Mixture
    preferences: Mixture
    evals: Source


class Dedup(Section):
    ngram: PositiveInt
    permutations: PositiveInt
    bands: PositiveInt
    threshold: Share
    paragraphs: Natural
    against: Place
    memory_gib: Annotated[float, Field(ge=0.4, le=MOST)]

    @model_validator(mode="after")
    def _whole_bands(self) -> Self:
        if self.permutations % self.bands:
            raise ValueError(
                f"permutations ({self.permutations}) must be a multiple of bands ({self.bands}); "
                f"nearest: {max(1, round(self.permutations / self.bands)) * self.bands}"
            )
        return self


class C4(Section):
    apply: bool
    min_line_words: Natural
    max_word_length: PositiveInt
    final_punctuation: bool
    drop_lines_with: Phrases
    drop_documents_with: Phrases
    min_sentences: Natural


class Fineweb(Section):
    apply: bool
    min_line_endings: Share
    short_line: PositiveInt
    max_short_lines: Share
    max_repeated_line_characters: Share
    max_newlines: PositiveFloat


class Filter(Section):
    definitions: Literal["verdict", "published"]
    languages: list[str]
    min_language_score: Share
    min_words: PositiveInt
    max_words: PositiveInt
    min_mean_word_length: PositiveFloat
    max_mean_word_length: PositiveFloat
    max_symbol_ratio: Share
    max_bullet_lines: Share
    max_ellipsis_lines: Share
    min_alphabetic_words: Share
    min_stop_words: Natural
    repetition: bool
    limits: dict[str, tuple[float | None, float | None]]
    c4: C4
    fineweb: Fineweb
    min_quality: Share
    mask: list[Literal["email", "ipv4", "phone"]]
    weights: Weights
    decontamination_ngram: PositiveInt
    max_contamination: Share


class Tokenizer(Section):
    # 256 bytes and the special tokens are always there; ids are stored in at most 32 bits.
    vocab_size: Annotated[int, Field(ge=320, le=2**20)]


class Pack(Section):
    row_tokens: Annotated[int, Field(ge=16, le=2**20)]


class Rung(Section):
    share: Share  # of budget_flops; 0: not trained
    tokens_per_parameter: PositiveFloat


class Sizing(Section):
    tokens_per_parameter: PositiveFloat
    max_epochs: PositiveFloat
    head_dim: Annotated[int, Field(ge=8, le=256, multiple_of=8)] | Literal["auto"]
    batch_tokens: PositiveInt | Literal["auto"]
    learning_rate: PositiveFloat | Literal["auto"]
    parametrization: Literal["standard", "mup"]
    rungs: Annotated[list[Rung], Field(min_length=1, max_length=100)]


class Trainer(Section):
    precision: Literal["auto", "fp32", "bf16", "fp8", "fp8_rowwise", "int8"]
    stochastic_rounding: bool
    attention: Literal["auto", "cudnn", "flash2", "flash3", "flash4", "flex", "varlen", "sdpa", "eager"]
    compile: Literal["auto", "layers", "none"]
    kernels: Literal["torch", "liger"]
    checkpointing: Literal["auto", "none", "selective", "full"]
    offload: Literal["auto", "none", "cpu", "nvme"]
    sharding: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3"]
    communication: Literal["fp32", "bf16", "powersgd"]
    local_steps: PositiveInt
    optimizer: Literal["adamw", "lion", "muon", "adam_mini", "sophia", "shampoo", "schedule_free"]
    schedule: Literal["cosine", "wsd", "constant"]
    decay: Share
    skip_sigma: NonNegative


class Pretrain(Section):
    layers_from: Annotated[float, Field(gt=0, le=1)]
    row_tokens_from: Annotated[float, Field(gt=0, le=1)]
    weight_decay: NonNegative
    warmup: Warmup
    clip: PositiveFloat
    order: Literal["shuffled", "easy_first"]


class Sft(Section):
    teacher: Place
    distill: Share
    temperature: PositiveFloat
    lora_rank: Natural
    epochs: PositiveFloat
    learning_rate: PositiveFloat
    batch_tokens: PositiveInt
    warmup: Warmup


class Dpo(Section):
    beta: PositiveFloat
    loss: Literal["sigmoid", "ipo", "hinge", "robust", "apo_zero", "apo_down", "kto", "simpo", "orpo", "grpo", "rloo"]
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    gamma: NonNegative
    reward: Literal["overlap", "number"]
    generations: Annotated[int, Field(ge=2, le=MOST)]
    answer_tokens: PositiveInt
    lora_rank: Natural
    epochs: PositiveFloat
    learning_rate: PositiveFloat
    batch_pairs: PositiveInt
    warmup: Warmup


class Eval(Section):
    limit: PositiveInt | None
    validation_bytes: PositiveInt | None
    ngram_symbols: PositiveInt
    prompts: PositiveInt
    new_tokens: PositiveInt


class Export(Section):
    dtype: Literal["auto", "fp32", "bf16"]


class GateMetrics(Section):
    not_worse_by: dict[GateMetric, NonNegative]
    better_by: dict[GateMetric, NonNegative]


class Gate(Section):
    metrics: GateMetrics
    errors: Annotated[float, Field(ge=1, le=MOST)]
    examples: PositiveInt

    @model_validator(mode="before")
    @classmethod
    def _replaced(cls, values: Any) -> Any:
        if isinstance(values, dict) and {"metric", "margin"} & values.keys():  # of version 0.1
            rule = f"{{not_worse_by: {{}}, better_by: {{{values.get('metric')}: {values.get('margin', 0.0)}}}}}"
            raise ValueError(f"metric and margin are now metrics, one or more. Write metrics: {rule} and examples: 10")
        return values


class Params(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    budget_flops: Budget
    init: Place
    max_rejected: Share
    data: Data
    dedup: Dedup
    filter: Filter
    tokenizer: Tokenizer
    pack: Pack
    sizing: Sizing
    trainer: Trainer
    pretrain: Pretrain
    sft: Sft
    dpo: Dpo
    export: Export
    eval: Eval
    gate: Gate


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and validate ``path``. Raises UserError: no such file, not YAML, an unknown or missing key, a bad value."""
    path = Path(path)
    params = validated(read_params(path), path)
    for name in Data.model_fields:
        source = getattr(params.data, name).path
        if any(c in source for c in PATTERN) and not os.path.lexists(path.parent / source):
            raise UserError(
                f"{path}: data.{name}: {shorten(repr(source))} is a pattern; put the folder in `path` and the pattern "
                "in `files`"
            )
    return params


def read_params(path: Path) -> Any:
    """Return the content of the file ``path``, unchecked. Raises UserError if it is missing or not YAML."""
    try:
        return parse_yaml(read_text(path), path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Run from the repository's root.") from None


def validated(raw: Any, path: str | Path) -> Params:
    """Return ``raw``, the content of ``path``, as Params. Raises UserError as :func:`load_params`."""
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected keys and values, found {type(raw).__name__}.")
    check_plain(raw, path)
    if hidden := next(hidden_from_run_cache(raw), None):
        raise UserError(
            f"{path}: {shorten(hidden)}: DVC's run cache ignores keys of this name (dvc/stage/cache.py), so a changed "
            "value would restore an old result. Use another name."
        )
    try:
        return Params.model_validate(raw)
    except ValidationError as e:
        raise UserError(explain_invalid(e, Params, path)) from None
