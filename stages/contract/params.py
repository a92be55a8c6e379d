"""params.yaml, typed. Every value is stated there and nowhere else: no field here has a default."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.contract.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
Weights = dict[str, Annotated[float, Field(ge=0, le=100)]]
Phrases = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=32)]
Warmup = Annotated[float, Field(ge=0, lt=1)]  # share of the steps


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Source(Section):
    """A file or a folder, and a glob over the folder's files."""

    path: str
    files: str

    @model_validator(mode="after")
    def _no_glob_in_path(self):
        if any(c in self.path for c in "*?["):
            raise ValueError(f"{self.path!r} is a pattern; put the folder in `path` and the pattern in `files`")
        return self


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
    paragraphs: Annotated[int, Field(ge=0)]
    against: str
    memory_gib: Annotated[float, Field(ge=0.4)]

    @model_validator(mode="after")
    def _whole_bands(self):
        if self.permutations % self.bands:
            raise ValueError(
                f"permutations ({self.permutations}) must be a multiple of bands ({self.bands}); "
                f"nearest: {max(1, round(self.permutations / self.bands)) * self.bands}"
            )
        return self


class C4(Section):
    apply: bool
    min_line_words: Annotated[int, Field(ge=0)]
    max_word_length: PositiveInt
    final_punctuation: bool
    drop_lines_with: Phrases
    drop_documents_with: Phrases
    min_sentences: Annotated[int, Field(ge=0)]


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
    min_stop_words: Annotated[int, Field(ge=0)]
    repetition: bool
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


class Size(Section):
    tokens_per_parameter: PositiveFloat
    max_epochs: PositiveFloat
    head_dim: Annotated[int, Field(ge=8, le=256, multiple_of=8)] | Literal["auto"]
    batch_tokens: PositiveInt | Literal["auto"]
    learning_rate: PositiveFloat | Literal["auto"]


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
    skip_sigma: Annotated[float, Field(ge=0)]


class Pretrain(Section):
    layers_from: Annotated[float, Field(gt=0, le=1)]
    row_tokens_from: Annotated[float, Field(gt=0, le=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    warmup: Warmup
    clip: PositiveFloat
    order: Literal["shuffled", "easy_first"]


class Sft(Section):
    teacher: str
    distill: Share
    temperature: PositiveFloat
    lora_rank: Annotated[int, Field(ge=0)]
    epochs: PositiveFloat
    learning_rate: PositiveFloat
    batch_tokens: PositiveInt
    warmup: Warmup


class Dpo(Section):
    beta: PositiveFloat
    loss: Literal[
        "sigmoid", "ipo", "hinge", "robust", "apo_zero", "apo_down", "kto", "simpo", "orpo", "grpo", "rloo"
    ]  # fmt: skip
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    gamma: Annotated[float, Field(ge=0)]
    reward: Literal["overlap", "number"]
    generations: Annotated[int, Field(ge=2)]
    answer_tokens: PositiveInt
    lora_rank: Annotated[int, Field(ge=0)]
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


class Gate(Section):
    metric: Annotated[str, Field(pattern=r"^(bits_per_byte|preferences|tasks\.[^.].*\.[^.]+)$")]
    margin: Annotated[float, Field(ge=0)]
    errors: Annotated[float, Field(ge=1)]


class Params(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    budget_flops: PositiveFloat
    init: str
    data: Data
    dedup: Dedup
    filter: Filter
    tokenizer: Tokenizer
    pack: Pack
    size: Size
    trainer: Trainer
    pretrain: Pretrain
    sft: Sft
    dpo: Dpo
    eval: Eval
    gate: Gate


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and validate ``path``.

    Raises:
        UserError: no such file, not YAML, an unknown key, a missing key, an impossible value.
    """
    path = Path(path)
    try:
        raw = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Run from the repository's root.") from None
    except (YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(e).split())}") from None
    return validated(raw, path)


def validated(raw, path: str | Path) -> Params:
    """``raw``, what was read from ``path``, as Params. Raises UserError as :func:`load_params`."""
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected keys and values, found {type(raw).__name__}.")
    try:
        return Params.model_validate(raw)
    except ValidationError as e:
        raise UserError("\n".join(f"{path}: {_explain(error)}" for error in e.errors())) from None


def _explain(error: dict[str, Any]) -> str:
    """One line for one pydantic error: the dotted key, the value, what is allowed."""
    # Union members ("int", "literal['auto']") appear in `loc` after the key; a key is a plain identifier.
    key = ".".join(str(part) for part in error["loc"] if str(part).isidentifier() and part not in ("float", "int"))
    if error["type"] == "extra_forbidden":
        section = _section(error["loc"][:-1])
        return f"{key}: no such parameter. Allowed here: {', '.join(section.model_fields)}."
    if error["type"] == "missing":
        return f"{key}: missing; every parameter is stated in params.yaml."
    allowed = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {allowed}"
    return f"{key}: {error['input']!r} is not allowed. {allowed}."


def _section(loc: tuple) -> type[BaseModel]:
    section: type[BaseModel] = Params
    for name in loc:
        section = section.model_fields[name].annotation
    return section
