"""What defines a model: one plain dataclass for each architecture, validated once.

Fields have the names of the released language model's configuration where it has them.  The models that
are registered with fairseq add its base class and a few fields of their own.
"""

from dataclasses import dataclass
from typing import Optional

from megalodon_tasks.models.settings import setting

INIT_MODES = ("he", "bert", "xavier")
CEMA_ACTIVATIONS = ("rmsnorm", "silu")
CEMA_INITS = ("released", "spread")
# The paper's ideas, each with what takes its place when it is taken away; the first is the default.
ABLATIONS = {
    "moving_average": ("complex", "real", "none"),
    "norm_type": ("time", "layer"),
    "attention_scores": ("normalised", "scaled"),
    "residual": ("two_hop", "plain"),
}
ATTENTION_ACTIVATIONS = ("softmax", "laplace")
MEGA_NORMS = ("layer", "scale", "batch", "syncbatch")
POSITIONS = ("simple", "rotary", "rope")
SHORTEST_MEMORY = 4  # steps; the shortest time constant of CEMA with cema_init=spread


@dataclass
class EncoderConfig:
    """What every architecture has in common: size, chunks and regularisation of a stack of blocks.

    ``chunk_size`` None means full attention.
    """

    model_dim: int = setting(128, "width d of the residual stream")
    num_layers: int = setting(4, "number of blocks")
    ffn_hidden_dim: int = setting(320, "width of the feed-forward layer")
    chunk_size: Optional[int] = setting(
        None, "attention chunk in steps; leave out (null) for full attention"
    )
    norm_eps: float = setting(1e-5, "epsilon inside every norm's square root")
    rope_base: float = setting(10000.0, "base of the rotary embedding")
    dropout: float = setting(0.0, "dropout of branches and embeddings")
    attention_dropout: float = setting(
        0.0, "dropout of attention; in Megalodon DropKey, which masks scores before the softmax"
    )
    hidden_dropout: float = setting(0.0, "dropout inside the attention half and inside the FFN")
    drop_path: float = setting(
        0.0, "stochastic depth: probability in the last block, rising from 0 in the first"
    )
    init_mode: str = setting("he", f"initialisation of matrices: one of {', '.join(INIT_MODES)}")
    checkpoint_activations: bool = setting(
        False, "store only the input of each block, recompute it in the backward pass"
    )
    compile_blocks: bool = setting(
        False, "training: torch.compile of the blocks, minutes at the start of a run"
    )

    def validate(self) -> None:
        """Raise ``ValueError`` for an impossible value, naming the field and a remedy."""
        self._require_positive("model_dim", "num_layers", "ffn_hidden_dim")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(
                f"model.chunk_size={self.chunk_size} is not a positive number of steps; "
                "leave it out (null in YAML) for full attention"
            )
        for name in ("dropout", "attention_dropout", "hidden_dropout", "drop_path"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise ValueError(f"model.{name}={value} must be in [0, 1)")
        for name in ("norm_eps", "rope_base"):
            if getattr(self, name) <= 0:
                raise ValueError(f"model.{name}={getattr(self, name)} must be greater than 0")
        self._require_one_of(init_mode=INIT_MODES)

    def _require_positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be a positive integer")

    def _require_one_of(self, **known: tuple[str, ...]) -> None:
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"model.{name}={getattr(self, name)!r} is unknown; choose one of {values}"
                )

    def drop_path_at(self, layer_index: int) -> float:
        """Return the probability of dropping a branch of block ``layer_index``: linear from 0."""
        return self.drop_path * layer_index / max(self.num_layers - 1, 1)


@dataclass
class MovingAverageConfig(EncoderConfig):
    """What Megalodon and Mega have in common: attention on top of a moving average."""

    z_dim: int = setting(64, "width z of the shared representation (eq. 6)")
    value_dim: int = setting(256, "width v of the values and their gate")
    cema_ndim: int = setting(16, "components h of the moving average per feature (eq. 2)")
    cema_init: str = setting(
        "released",
        "the moving average's memory at the start: released (3.5 steps) or spread (to cema_memory)",
    )
    cema_memory: Optional[int] = setting(
        None, "longest time constant in steps, for cema_init=spread"
    )

    def validate(self) -> None:
        """Raise ``ValueError`` for an impossible value, naming the field and a remedy."""
        super().validate()
        self._require_positive("z_dim", "value_dim", "cema_ndim")
        self._require_one_of(cema_init=CEMA_INITS)
        if self.cema_init == "spread" and (self.cema_memory or 0) < SHORTEST_MEMORY:
            raise ValueError(
                f"model.cema_memory={self.cema_memory} with model.cema_init=spread: give the longest "
                f"time constant, at least {SHORTEST_MEMORY} steps, or choose model.cema_init=released"
            )


@dataclass
class MegalodonConfig(MovingAverageConfig):
    """Sizes, regularisation and choices of one stack of Megalodon blocks.

    ``norm_num_groups`` 0 means one group per feature.
    """

    num_heads: int = setting(1, "attention heads; divides z_dim and value_dim")
    cema_activation: str = setting(
        "rmsnorm", f"what CEMA's output goes through: one of {', '.join(CEMA_ACTIVATIONS)}"
    )
    norm_num_groups: int = setting(0, "groups of the norm over time; 0 = one group per feature")
    moving_average: str = setting(
        "complex", "before attention: complex (CEMA), real (no angles), or none"
    )
    norm_type: str = setting(
        "time", "before attention and at the end: time (over steps and groups) or layer"
    )
    attention_scores: str = setting(
        "normalised",
        "of vectors with length 1 (normalised), or dot products / sqrt(width) (scaled)",
    )
    residual: str = setting(
        "two_hop",
        "what a block's later branches add to: its input (two_hop), or the last sum (plain)",
    )
    swiglu: bool = setting(False, "SwiGLU instead of SiLU feed-forward")
    rescale_nffn: bool = setting(
        False, "scale the feed-forward branch by a learned 0.1 * 0.5^layer"
    )
    causal: bool = setting(
        False, "causal CEMA, attention and timestep norm instead of bidirectional ones"
    )

    def validate(self) -> None:
        """Raise ``ValueError`` for an impossible value, naming the field and a remedy."""
        super().validate()
        self._require_positive("num_heads")
        self._require_heads_divide()
        if self.norm_num_groups < 0 or self.model_dim % (self.norm_num_groups or 1):
            raise ValueError(
                f"model.norm_num_groups={self.norm_num_groups} does not divide "
                f"model.model_dim={self.model_dim}; choose a divisor, or 0 for one group per feature"
            )
        self._require_one_of(cema_activation=CEMA_ACTIVATIONS, **ABLATIONS)

    def _require_heads_divide(self) -> None:
        for name in ("z_dim", "value_dim"):
            if getattr(self, name) % self.num_heads:
                raise ValueError(
                    f"model.num_heads={self.num_heads} does not divide "
                    f"model.{name}={getattr(self, name)}; choose a divisor of z_dim and value_dim"
                )
        if (self.z_dim // self.num_heads) % 2:
            raise ValueError(
                f"model.z_dim={self.z_dim} / model.num_heads={self.num_heads} is odd; rotary "
                "embedding rotates pairs of dimensions, so choose sizes with an even quotient"
            )

    @property
    def ablations(self) -> dict[str, str]:
        """Return the settings, such as ``residual: plain``, that take an idea of the paper away."""
        values = {name: getattr(self, name) for name in ABLATIONS}
        return {name: value for name, value in values.items() if value != ABLATIONS[name][0]}

    @property
    def norm_groups(self) -> int:
        """Number of groups of the norms over time, with 0 resolved."""
        return self.norm_num_groups or self.model_dim


@dataclass
class MegaConfig(MovingAverageConfig):
    """Sizes, regularisation and choices of one stack of Mega blocks (arXiv 2209.10655), an encoder."""

    attention_activation: str = setting(
        "softmax", f"what turns scores into weights: one of {', '.join(ATTENTION_ACTIVATIONS)}"
    )
    norm_type: str = setting("layer", f"norm of all blocks: one of {', '.join(MEGA_NORMS)}")
    prenorm: bool = setting(
        False, "norms before each half of a block and at the end, instead of after each"
    )
    positions: str = setting(
        "simple",
        "simple: a learned bias for each distance; rotary: a bias from two learned vectors that "
        "are rotated; rope: queries and keys are rotated, as in Megalodon",
    )
    max_positions: int = setting(2048, "longest sequence, for positions=simple with full attention")
    init_mode: str = setting("bert", f"initialisation of matrices: one of {', '.join(INIT_MODES)}")

    def validate(self) -> None:
        """Raise ``ValueError`` for an impossible value, naming the field and a remedy."""
        super().validate()
        self._require_positive("max_positions")
        self._require_one_of(
            attention_activation=ATTENTION_ACTIVATIONS, norm_type=MEGA_NORMS, positions=POSITIONS
        )
        if self.positions != "simple" and self.z_dim % 2:
            raise ValueError(
                f"model.z_dim={self.z_dim} is odd; model.positions={self.positions} rotates pairs of "
                "dimensions, so choose an even number, or model.positions=simple"
            )
        if self.checkpoint_activations and self.norm_type in ("batch", "syncbatch"):
            raise ValueError(
                f"model.checkpoint_activations=true with model.norm_type={self.norm_type} would count "
                "each batch twice in the norm's running statistics; turn it off, or choose "
                "model.norm_type=layer"
            )
