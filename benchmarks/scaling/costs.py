"""What one device computes, reads and saves for one microbatch of a language model: counts only.

The operations and bytes of CEMA, timestep norm and attention are those that ``benchmarks.ops`` holds the
kernels to.  Everything else is counted as the model's code calls PyTorch, one kernel per call.

Legend: n tokens of the microbatch on this device, e bytes of a number, t devices that share a layer;
d, z, v, f widths of the model, N components of CEMA, C chunk, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.limits import Work
from benchmarks.ops_cases import AttentionCase, CemaCase, NormCase
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.presets import LM_PRESETS

PRESETS = ("200m", "1.3b", "7b")
VOCABULARY = 32_000  # the released models' tokenizer, arXiv 2404.08801, section 4.1


@dataclass(frozen=True)
class Model:
    """The sizes of a causal language model; ``share_emb``: one matrix in and out."""

    config: MegalodonConfig
    vocab: int
    share_emb: bool = False


def preset(name: str) -> Model:
    """Return a released size.  Raises ``ValueError`` for a name that is not in ``PRESETS``."""
    if name not in PRESETS:
        raise ValueError(f"model {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    config = MegalodonConfig(**LM_PRESETS[f"megalodon_lm_{name}"], causal=True)
    return Model(config, VOCABULARY)


@dataclass(frozen=True)
class Microbatch:
    """What one device computes at once: sequences, or equal pieces of them, of ``length`` steps."""

    sequences: int
    length: int
    bytes_each: int
    tensor: int = 1

    @property
    def tokens(self) -> int:
        return self.sequences * self.length


class Op(NamedTuple):
    """The work of calls of one kind, in the forward pass and in both passes."""

    kind: str
    forward: Work
    both: Work


def block_parameters(config: MegalodonConfig, tensor: int = 1) -> int:
    """Return the parameters of a block that one of ``tensor`` devices holds.

    They are cut as in the released checkpoints: all but RMSNorm, LayerNorm and the layer scale.
    """
    d, z, v, f = config.model_dim, config.z_dim, config.value_dim, config.ffn_hidden_dim
    cema = d * (4 * config.cema_ndim + 2)
    attention = 2 * (d * v + v) + (d * z + z) + (d * d + d) + v * d + 4 * z
    cut = 2 * d + cema + attention + (3 if config.swiglu else 2) * d * f
    return cut // tensor + (4 if config.rescale_nffn else 3) * d


def end_parameters(model: Model, tensor: int = 1) -> tuple[int, int]:
    """Return the parameters of the embedding, and of the final norm with the output matrix."""
    d = model.config.model_dim
    matrix = model.vocab * d // tensor
    return matrix, 2 * d // tensor + (0 if model.share_emb else matrix)


def _linear(micro: Microbatch, inputs: int, outputs: int) -> Op:
    """``2 n inputs outputs`` operations forward; gradients of inputs and weights are as many each."""
    n, weights = micro.tokens, inputs * outputs
    read = micro.bytes_each * (n * (inputs + outputs) + weights)
    return Op("products", Work(2.0 * n * weights, read), Work(6.0 * n * weights, 3 * read))


def value_projection(config: MegalodonConfig, micro: Microbatch) -> Op:
    """Return the product that CEMA's exchange overlaps with."""
    return _linear(micro, config.model_dim, config.value_dim // micro.tensor)


def _passes(kind: str, micro: Microbatch, forward: float, both: float) -> Op:
    """Work that is only reading and writing: so many bytes for each token."""
    return Op(kind, Work(0.0, micro.tokens * forward), Work(0.0, micro.tokens * both))


def _elementwise(config: MegalodonConfig, micro: Microbatch) -> Op:
    """SiLU (2 passes forward, 3 backward), product (3, 6), sum (3, 0), rotation, affine map of q and k.

    A gradient that arrives from several places is summed, 3 passes each; that of a bias is read once.
    """
    e, t = micro.bytes_each, micro.tensor
    d, z, v, f = (
        config.model_dim,
        *(width // t for width in (config.z_dim, config.value_dim, config.ffn_hidden_dim)),
    )
    rotation = 8 if e >= 4 else 16 + 2 * e  # computed in float32
    forward = 7 * e * v + 2 * (2 * e + rotation) * z + 9 * e * d
    both = 19 * e * v + 2 * (10 * e + 2 * rotation) * z + 24 * e * d + e * (2 * v + z + d)
    if config.swiglu:
        return _passes("elementwise", micro, forward + 5 * e * f, both + 14 * e * f + 3 * e * d)
    return _passes("elementwise", micro, forward + 2 * e * f, both + 5 * e * f)


def block_ops(config: MegalodonConfig, micro: Microbatch) -> list[Op]:
    """Return the work of one block on one of ``micro.tensor`` devices."""
    e, t, place = micro.bytes_each, micro.tensor, ("", micro.sequences, micro.length)
    d, heads = config.model_dim, config.num_heads // t
    z, v, f = (w // t for w in (config.z_dim, config.value_dim, config.ffn_hidden_dim))
    key, value = config.z_dim // config.num_heads, config.value_dim // config.num_heads
    chunk = config.chunk_size or micro.length
    norm = NormCase(*place, d // t, config.norm_groups // t)
    attention = AttentionCase(*place, heads, key, chunk, True, value)
    products = [(d, v), (d, z), (d, v), (d, d // t), (v, d), (d, f), (f, d)]
    products += [(d, f)] * config.swiglu
    return [
        Op("timestep_norm", *norm.work("triton", e)),
        Op("cema", *CemaCase(*place, d // t, config.cema_ndim).work("triton", e)),
        Op("chunk_attention", *attention.work("triton", e)),
        *(_linear(micro, inputs, outputs) for inputs, outputs in products),
        _passes("row norms", micro, 2 * e * (d + d // t + z), 5 * e * (d + d // t + z)),
        _elementwise(config, micro),
    ]


def chunk_parallel_ops(config: MegalodonConfig, micro: Microbatch) -> list[Op]:
    """Return what a block computes in addition for chunk parallelism: what its piece adds to the states.

    The states (``cuda_ops/complex_ema/last_state.py``) are a product with a matrix of 2N columns, and
    tables of powers of q, about 150 bytes read and written for each number forward and 300 backward.
    The moments (``models/chunk_parallel.py``) only read and write.  All bytes are those of PyTorch's
    calls, one kernel each, in float32, and for the tables in float64.
    """
    e, d = micro.bytes_each, config.model_dim // micro.tensor
    operations = 4.0 * micro.tokens * d * config.cema_ndim
    numbers, tables = micro.tokens * d, d * config.cema_ndim * sum(_table_rows(micro))
    return [
        Op(
            "piece states",
            Work(operations, numbers * (e + 16) + 150 * tables),
            Work(3 * operations, numbers * (36 + 5 * e) + 450 * tables),
        ),
        _passes("piece moments", micro, d * (e + 32), d * (76 + 5 * e)),
    ]


def _table_rows(micro: Microbatch) -> tuple[int, int]:
    """Return the steps of a block of ``last_state``, and its blocks: rows of its tables of powers."""
    steps = max(8, math.isqrt(micro.length))
    return steps, -(-micro.length // steps)


def end_ops(model: Model, micro: Microbatch) -> list[Op]:
    """Return the work outside of the blocks: embedding, final norm, output, cross entropy in float32."""
    e, d, place = micro.bytes_each, model.config.model_dim, ("", micro.sequences, micro.length)
    vocab = model.vocab // micro.tensor
    norm = NormCase(*place, d // micro.tensor, model.config.norm_groups // micro.tensor)
    return [
        _passes("elementwise", micro, 2 * e * d, 5 * e * d),
        Op("timestep_norm", *norm.work("triton", e)),
        _linear(micro, d, vocab),
        # Forward: cast, copy, log-softmax.  Backward: a tensor of zeros, that of log-softmax, the cast.
        _passes("loss", micro, vocab * (e + 20), vocab * (2 * e + 40)),
    ]


def optimizer_op(parameters: float) -> Op:
    """AdamW reads 4 numbers a parameter and writes 3, clipping reads 2 and writes 1, in float32."""
    work = Work(0.0, 40.0 * parameters)
    return Op("optimizer", work, work)


def block_activations(
    config: MegalodonConfig, micro: Microbatch, backend: str = "triton", pieces: bool = False
) -> int:
    """Return the bytes that a block saves for its backward pass, on one of ``micro.tensor`` devices.

    Saved are

    * d wide: inputs and outputs of timestep norm and LayerNorm, CEMA's output and its norm's;
    * v wide: value and gate before and after SiLU, the output of attention before and after the gate;
    * z wide: the shared representation before and after its norm, queries and keys;
    * f wide: what enters and leaves each activation and product of the feed-forward layer;
    * one float32 number for each token and norm over features.

    ``backend`` native adds CEMA's states every 256 steps, timestep norm's moments, and the C weights of
    each token and head, because PyTorch has no fused attention for keys and values of other widths;
    triton adds one number for each token and head.  ``pieces`` adds what chunk parallelism computes the
    ends of pieces from: inputs of CEMA and timestep norm in float32, tables of powers of q.
    """
    e, t, n = micro.bytes_each, micro.tensor, micro.tokens
    d, heads, groups = config.model_dim, config.num_heads // t, config.norm_groups // t
    z, v, f = (w // t for w in (config.z_dim, config.value_dim, config.ffn_hidden_dim))
    wide = 5 * d + d // t + 6 * v + 4 * z + (4 if config.swiglu else 2) * f
    wide += d * config.rescale_nffn
    statistics = 4 * (3 + heads)  # RMSNorm's and LayerNorm's, of z per head
    turns = 8 * micro.length * (config.z_dim // config.num_heads)
    saved = n * (e * wide + statistics) + turns
    if pieces:
        within, across = _table_rows(micro)
        powers = 24 * within + 32 * across + 8 * micro.sequences * across
        saved += 2 * 4 * n * d // t + d // t * config.cema_ndim * powers
    if backend == "triton":
        return saved + 4 * n * heads
    native = 4 * n * (3 * groups + 2 * config.cema_ndim * d // t // 256)
    same_width = config.z_dim == config.value_dim
    chunk = config.chunk_size or micro.length
    return saved + native + 4 * n * heads * (1 if same_width else chunk)


def end_activations(model: Model, micro: Microbatch, pieces: bool = False) -> int:
    """Return the bytes saved outside of the blocks: tokens, final norm, output, log-probabilities."""
    d, vocab = model.config.model_dim, model.vocab // micro.tensor
    moments = 4 * d // micro.tensor if pieces else 0
    return micro.tokens * (16 + 2 * micro.bytes_each * d + moments + 4 * vocab)


def loss_peak(model: Model, micro: Microbatch) -> int:
    """Return the bytes of scores or their gradients beside the saved ones: twice in float32."""
    return 8 * micro.tokens * model.vocab // micro.tensor
