"""What defines a Megalodon: one plain dataclass, validated once.

Fields have the names of the released language model's configuration where it has them.  The models that
are registered with fairseq add its base class and a few fields of their own.
"""

from dataclasses import dataclass, field
from typing import Optional

INIT_MODES = ("he", "bert", "xavier")
CEMA_ACTIVATIONS = ("rmsnorm", "silu")
CEMA_INITS = ("released", "spread")
SHORTEST_MEMORY = 4  # steps; the shortest time constant of CEMA with cema_init=spread


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class MegalodonConfig:
    """Sizes, regularisation and choices of one stack of Megalodon blocks.

    ``chunk_size`` None means full attention.  ``norm_num_groups`` 0 means one group per feature.
    """

    model_dim: int = field(default=128, metadata=_help("width d of the residual stream"))
    num_layers: int = field(default=4, metadata=_help("number of blocks"))
    num_heads: int = field(
        default=1, metadata=_help("attention heads; divides z_dim and value_dim")
    )
    z_dim: int = field(default=64, metadata=_help("width z of the shared representation (eq. 6)"))
    value_dim: int = field(default=256, metadata=_help("width v of the values and their gate"))
    ffn_hidden_dim: int = field(default=320, metadata=_help("width of the feed-forward layer"))
    cema_ndim: int = field(default=16, metadata=_help("complex components h per feature (eq. 2)"))
    cema_activation: str = field(
        default="rmsnorm",
        metadata=_help(f"what CEMA's output goes through: one of {', '.join(CEMA_ACTIVATIONS)}"),
    )
    cema_init: str = field(
        default="released",
        metadata=_help(
            "CEMA's memory at the start: released (3.5 steps) or spread (to cema_memory)"
        ),
    )
    cema_memory: Optional[int] = field(
        default=None, metadata=_help("longest time constant in steps, for cema_init=spread")
    )
    chunk_size: Optional[int] = field(
        default=None,
        metadata=_help("attention chunk in steps; leave out (null) for full attention"),
    )
    norm_num_groups: int = field(
        default=0, metadata=_help("groups of the norm over time; 0 = one group per feature")
    )
    norm_eps: float = field(default=1e-5, metadata=_help("epsilon inside every norm's square root"))
    swiglu: bool = field(default=False, metadata=_help("SwiGLU instead of SiLU feed-forward"))
    rescale_nffn: bool = field(
        default=False, metadata=_help("scale the feed-forward branch by a learned 0.1 * 0.5^layer")
    )
    rope_base: float = field(default=10000.0, metadata=_help("base of the rotary embedding"))
    dropout: float = field(default=0.0, metadata=_help("dropout of branches and embeddings"))
    attention_dropout: float = field(
        default=0.0, metadata=_help("DropKey: probability of masking a score before the softmax")
    )
    hidden_dropout: float = field(
        default=0.0, metadata=_help("dropout after CEMA, on gated attention and inside the FFN")
    )
    drop_path: float = field(
        default=0.0,
        metadata=_help(
            "stochastic depth: probability in the last block, rising from 0 in the first"
        ),
    )
    init_mode: str = field(
        default="he", metadata=_help(f"initialisation of matrices: one of {', '.join(INIT_MODES)}")
    )
    checkpoint_activations: bool = field(
        default=False,
        metadata=_help("store only the input of each block, recompute it in the backward pass"),
    )
    compile_blocks: bool = field(
        default=False,
        metadata=_help("training: torch.compile of the blocks, minutes at the start of a run"),
    )
    causal: bool = field(
        default=False,
        metadata=_help("causal CEMA, attention and timestep norm instead of bidirectional ones"),
    )

    def validate(self) -> None:
        """Raise ``ValueError`` for an impossible value, naming the field and a remedy."""
        for name in ("model_dim", "num_layers", "num_heads", "z_dim", "value_dim", "cema_ndim"):
            self._require_positive(name)
        self._require_positive("ffn_hidden_dim")
        self._require_heads_divide()
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(
                f"model.chunk_size={self.chunk_size} is not a positive number of steps; "
                "leave it out (null in YAML) for full attention"
            )
        if self.norm_num_groups < 0 or self.model_dim % (self.norm_num_groups or 1):
            raise ValueError(
                f"model.norm_num_groups={self.norm_num_groups} does not divide "
                f"model.model_dim={self.model_dim}; choose a divisor, or 0 for one group per feature"
            )
        for name in ("dropout", "attention_dropout", "hidden_dropout", "drop_path"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise ValueError(f"model.{name}={value} must be in [0, 1)")
        for name in ("norm_eps", "rope_base"):
            if getattr(self, name) <= 0:
                raise ValueError(f"model.{name}={getattr(self, name)} must be greater than 0")
        for name, known in (
            ("init_mode", INIT_MODES),
            ("cema_activation", CEMA_ACTIVATIONS),
            ("cema_init", CEMA_INITS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"model.{name}={getattr(self, name)!r} is unknown; choose one of {known}"
                )
        if self.cema_init == "spread" and (self.cema_memory or 0) < SHORTEST_MEMORY:
            raise ValueError(
                f"model.cema_memory={self.cema_memory} with model.cema_init=spread: give the longest "
                f"time constant, at least {SHORTEST_MEMORY} steps, or choose model.cema_init=released"
            )

    def _require_positive(self, name: str) -> None:
        if getattr(self, name) < 1:
            raise ValueError(f"model.{name}={getattr(self, name)} must be a positive integer")

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

    def drop_path_at(self, layer_index: int) -> float:
        """Return the probability of dropping a branch of block ``layer_index``: linear from 0."""
        return self.drop_path * layer_index / max(self.num_layers - 1, 1)

    @property
    def norm_groups(self) -> int:
        """Number of groups of the norms over time, with 0 resolved."""
        return self.norm_num_groups or self.model_dim
