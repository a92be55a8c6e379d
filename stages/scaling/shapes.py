"""Shapes of Llama-like models: parameters, FLOPs, and the shape nearest to a wanted size."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from stages.contract.errors import UserError

# model_type of the checkpoints that can be continued: the trainer runs RMSNorm, rotary embedding, gated product, plain
# attention and a plain head.
FAMILY = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "gemma3_text")
ASPECT = (16, 128)  # hidden size per layer; Kaplan et al. 2020, fig. 5: loss is flat over this range
TIE_ABOVE = 0.15  # share of the head in N from which the head shares the embedding's weights


@dataclass(frozen=True)
class Shape:
    """A Llama: RMSNorm, RoPE, SwiGLU; biases are not counted. Sizes in elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None  # None: as many as heads
    tie_word_embeddings: bool | None = None  # None: tied where the head is a large share of the model

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Shape":
        """Return the shape of a config.json's content, or of a plan's ``model``.

        Raises:
            UserError: the config is not of a supported model family.
        """
        if config.get("model_type", FAMILY[0]) not in FAMILY:
            raise UserError(
                f"a model of type {config['model_type']!r} cannot be trained here; there are {', '.join(FAMILY)}."
            )
        # The keys that a config may lack follow from the rest.
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        config = {"num_key_value_heads": None, "tie_word_embeddings": None} | config | {"head_dim": head_dim}
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})

    @property
    def query_width(self) -> int:
        """Width of the queries, and of the attention's output."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """Width of the keys, and of the values: less than the queries' with grouped-query attention."""
        return (self.num_key_value_heads or self.num_attention_heads) * self.head_dim

    @property
    def matrix_parameters(self) -> int:
        """Parameters of the blocks' matrices."""
        attention = 2 * self.hidden_size * (self.query_width + self.key_value_width)
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def block_parameters(self) -> int:
        """Parameters of the blocks and the last norm."""
        return self.matrix_parameters + (2 * self.num_hidden_layers + 1) * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def matmul_parameters(self) -> int:
        """N of the scaling laws: blocks and head."""
        return self.block_parameters + self.embedding_parameters

    @property
    def tied(self) -> bool:
        if self.tie_word_embeddings is not None:
            return self.tie_word_embeddings
        return self.embedding_parameters > TIE_ABOVE * self.matmul_parameters

    @property
    def parameters(self) -> int:
        return self.matmul_parameters + (0 if self.tied else self.embedding_parameters)

    def flops_per_token(self, row_tokens: int) -> int:
        """Return the FLOPs of forward and backward, attention counted in full (12·L·d·T), as most papers do for MFU."""
        attention = 12 * self.num_hidden_layers * self.query_width * row_tokens
        return 6 * self.matmul_parameters + attention

    def config(self) -> dict[str, Any]:
        """Return keyword arguments of transformers.LlamaConfig."""
        heads = self.num_key_value_heads or self.num_attention_heads
        return asdict(self) | {"num_key_value_heads": heads, "tie_word_embeddings": self.tied}


def llama(vocab_size: int, heads: int, layers: int, head_dim: int, row_tokens: int) -> Shape:
    """Return the shape of a Llama; the MLP is 8/3 as wide as the model, rounded to a width that suits kernels."""
    hidden = heads * head_dim
    multiple = 256 if hidden >= 1024 else 32  # wide kernels want wide tiles
    intermediate = max(multiple, round(hidden * 8 / 3 / multiple) * multiple)
    return Shape(vocab_size, hidden, intermediate, layers, heads, head_dim, row_tokens)


def default_head_dim(parameters: float) -> int:
    """Return 128, at which attention kernels are fastest, or less for small models, which need several heads more."""
    return 32 if parameters < 1e6 else 64 if parameters < 1e8 else 128


def divisible(rows: float) -> int:
    """Return the batch nearest to ``rows`` of the form 2^n or 3 * 2^n: 6, 8, 12, 16, 24 ...

    Such a batch has many divisors for a micro-batch; one of seven rows can only be cut into seven, or stay whole.
    """
    step = 2 ** max(0, math.floor(math.log2(max(rows, 1))) - 1)
    return max(1, round(rows / step) * step)


def nearest(parameters: float, vocab_size: int, head_dim: int, row_tokens: int) -> Shape:
    """Return the shape whose N is nearest to ``parameters``; of those within 5 %, the nearest to 64 wide per layer."""
    candidates = [
        llama(vocab_size, heads, layers, head_dim, row_tokens)
        for heads in range(1, 129)
        for layers in range(2, 97)
        if ASPECT[0] <= heads * head_dim / layers <= ASPECT[1]
    ]

    def distance(shape: Shape) -> tuple[float, float]:
        ratio = max(shape.matmul_parameters / parameters, parameters / shape.matmul_parameters)
        aspect = shape.hidden_size / shape.num_hidden_layers / 64
        return (0.0 if ratio < 1.05 else ratio, max(aspect, 1 / aspect))

    return min(candidates, key=distance)
