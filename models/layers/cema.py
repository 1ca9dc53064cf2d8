"""The CEMA layer: parameters, initialisation, and the call of the op.

Source: arXiv 2404.08801, section 3.1 (eq. 2, 3), as released: the input coefficient is real, only the
decay q has a phase, the angle is ``k * sigmoid(theta) * 2 pi / h``, the output is scaled by 1/sqrt(h),
and a skip ``omega * x`` is added.  ``cuda_ops/complex_ema/README.md`` shows that this equals eq. 2
once the phase is moved into eta.  Legend: B batch, L length, D dim, h complex components.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from megalodon_tasks.cuda_ops import cema
from megalodon_tasks.models.chunk_parallel import ChunkParallel
from megalodon_tasks.models.config import SHORTEST_MEMORY
from megalodon_tasks.models.layers.no_decay import WithoutDecay


class ComplexEMA(WithoutDecay):
    """Compute the complex exponential moving average of each feature.

    Parameters, in the released shapes (rows = D, or 2D when bidirectional: first forward, then
    backward): alpha, delta (rows, h, 1) logits; theta (rows, 1, 1) logit of the base angle; gamma
    (rows, h, 2) real and imaginary output weights; omega (D, 1) skip weight.

    ``memory``: None starts as the released code does, where every component forgets within about 3.5
    steps.  A number of steps spreads the time constants of each feature's components from
    ``SHORTEST_MEMORY`` to that number (see :meth:`reset_parameters`).

    The parameters keep float32 when a model is cast to 16 bits: rounded to bf16, a decay |q| above 0.996
    would be 1.  They are few, and the output has the dtype of the input.
    """

    # Weight decay would pull these logits to arbitrary rates and angles.
    undecayed = ("alpha", "delta", "theta")

    def __init__(self, dim: int, ndim: int, bidirectional: bool, memory: int | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.memory = memory
        self.bidirectional = bidirectional
        self.time_step = 1
        self.chunk_parallel: ChunkParallel | None = None  # see set_chunk_parallel
        self.create_parameters(2 * dim if bidirectional else dim, ndim)
        self.reset_parameters()

    def create_parameters(self, rows: int, ndim: int) -> None:
        """Register the parameters without values."""
        self.alpha = nn.Parameter(torch.empty(rows, ndim, 1))
        self.delta = nn.Parameter(torch.empty(rows, ndim, 1))
        self.theta = nn.Parameter(torch.empty(rows, 1, 1))
        self.gamma = nn.Parameter(torch.empty(rows, ndim, 2))
        self.omega = nn.Parameter(torch.empty(self.dim, 1))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as the released code does (alpha, delta ~ N(0, 0.2), permuted base angles).

        With ``memory`` T, delta is then set so that |q| = exp(-1 / tau), with h time constants tau
        spaced evenly from ``SHORTEST_MEMORY`` to T (evenly in their logarithm, as S4D, arXiv 2206.11893,
        and LRU, arXiv 2303.06349, spread theirs, learned less well; see ``models/README.md``).  Their
        order is random for each feature and direction, because the angle of component k grows with k:
        long memories would otherwise all be fast oscillations.
        """
        nn.init.normal_(self.alpha, std=0.2)
        nn.init.normal_(self.delta, std=0.2)
        nn.init.normal_(self.gamma)
        self.gamma[..., 1] = 0.0
        nn.init.trunc_normal_(self.omega, std=0.25, a=-1.0, b=1.0)
        # sigmoid(theta_j) = d^(-j/d): base angles spread evenly on a logarithmic scale, in random
        # order over the features, the same order for both directions.
        index = torch.arange(1, self.dim + 1, dtype=torch.float64)
        angle = torch.exp(-math.log(self.dim) * index / self.dim).clamp(max=1 - 1e-6)
        theta = torch.logit(angle)[torch.randperm(self.dim)]
        if self.bidirectional:
            theta = theta.repeat(2)
        self.theta.copy_(theta.view_as(self.theta))
        if self.memory is not None:
            spread_time_constants(self.delta, self.alpha, self.memory)

    def arguments(self) -> tuple[torch.Tensor, ...]:
        """Return the alpha, delta, theta, gamma and omega of :func:`cema`."""
        return self.alpha, self.delta, self.theta, self.gamma, self.omega

    def _apply(self, fn: Callable, *args: Any, **options: Any) -> nn.Module:
        def without_rounding(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            half = result.is_floating_point() and result.dtype.itemsize < torch.float32.itemsize
            return tensor.to(result.device, torch.float32) if half else result

        return super()._apply(without_rounding, *args, **options)

    @property
    def causal(self) -> bool:
        """Whether the output depends on earlier steps only."""
        return not self.bidirectional

    def start(
        self,
        x_BLD: torch.Tensor,
        padding_mask_BL: torch.Tensor | None,
        state: torch.Tensor | None,
    ) -> Callable[[], torch.Tensor | None]:
        """Start to fetch the state before ``x``; the result waits for it.

        Only with chunk parallelism is it another than ``state``, and is there anything to wait for.
        """
        if self.chunk_parallel is None:
            return lambda: state
        held = self._hold(x_BLD, padding_mask_BL)
        return self.chunk_parallel.cema_state(*held, self.arguments()[:4], state)

    def forward(
        self,
        x_BLD: torch.Tensor,
        padding_mask_BL: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map (B, L, D) to (B, L, D) and the state (B, D, h) complex (None if bidirectional).

        With ``time_step`` f > 1 a step of x stands for f steps of the signal that the parameters were
        trained on.  x is held for f steps and the output averaged over them.  In terms of the trained
        kernel K on all integers, that is the kernel ``K_f[l] = 1/f sum_{r, s < f} K[f l + r - s]``:
        time constants in seconds and the response to a constant stay the same in both directions.
        (In terms of q it is ``q^f`` with a geometric sum over p.  It is computed by the held steps
        because ``f * angle`` can exceed the range of the parameters; the oscillation then averages out,
        as it must when it is sampled below its Nyquist rate.)
        """
        f = self.time_step
        x_BLD, padding_mask_BL = self._hold(x_BLD, padding_mask_BL)
        y_BLD, state = cema(
            x_BLD,
            *self.arguments(),
            state=state,
            padding_mask=padding_mask_BL,
            bidirectional=self.bidirectional,
        )
        return (y_BLD.unflatten(1, (-1, f)).mean(dim=2) if f > 1 else y_BLD), state

    def _hold(
        self, x_BLD: torch.Tensor, padding_mask_BL: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Repeat each step ``time_step`` times."""
        f = self.time_step
        if f == 1:
            return x_BLD, padding_mask_BL
        if padding_mask_BL is not None:
            padding_mask_BL = padding_mask_BL.repeat_interleave(f, dim=1)
        return x_BLD.repeat_interleave(f, dim=1), padding_mask_BL


def spread_time_constants(delta: torch.Tensor, alpha: torch.Tensor, memory: int) -> None:
    """Set ``delta`` so that the time constants of each row spread evenly up to ``memory`` steps.

    ``|q| = 1 - sigmoid(alpha) sigmoid(delta)`` (eq. 2); both logits are (rows, h, 1).
    """
    rows, ndim, _ = delta.shape
    tau_N = torch.linspace(SHORTEST_MEMORY, memory, ndim, dtype=torch.float64)
    order_RN = torch.rand(rows, ndim, dtype=torch.float32).argsort(dim=1)
    forgotten_RN = -torch.expm1(-1 / tau_N)[order_RN]
    share_RN = forgotten_RN / torch.sigmoid(alpha[..., 0].double())
    delta.copy_(torch.logit(share_RN.clamp(max=1 - 1e-3))[..., None])
