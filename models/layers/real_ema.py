"""Moving averages without complex numbers: what CEMA has replaced.

They are computed by the op of CEMA, on all its backends: a real moving average is one with an angle of
zero.  Legend: B batch, L length, D dim, h components, rows = D, or 2D when bidirectional: first forward,
then backward.
"""

from collections.abc import Callable

import torch
from torch import nn

from megalodon_tasks.models.chunk_parallel import ChunkParallel
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.layers.cema import ComplexEMA, spread_time_constants

NO_ANGLE = -1e4  # the logit of an angle that is exactly zero, also in double precision


class RealEMA(ComplexEMA):
    """Compute CEMA without the angle: a damped exponential moving average of each feature.

    Parameters: alpha, delta (rows, h, 1) logits; gamma (rows, h, 1) output weights; omega (D, 1) skip
    weight.  They start as those of :class:`ComplexEMA`.
    """

    undecayed = ("alpha", "delta")

    def create_parameters(self, rows: int, ndim: int) -> None:
        """Register the parameters without values."""
        self.alpha = nn.Parameter(torch.empty(rows, ndim, 1))
        self.delta = nn.Parameter(torch.empty(rows, ndim, 1))
        self.gamma = nn.Parameter(torch.empty(rows, ndim, 1))
        self.omega = nn.Parameter(torch.empty(self.dim, 1))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw as :class:`ComplexEMA` does."""
        nn.init.normal_(self.alpha, std=0.2)
        nn.init.normal_(self.delta, std=0.2)
        nn.init.normal_(self.gamma)
        nn.init.trunc_normal_(self.omega, std=0.25, a=-1.0, b=1.0)
        if self.memory is not None:
            spread_time_constants(self.delta, self.alpha, self.memory)

    def arguments(self) -> tuple[torch.Tensor, ...]:
        """Return the alpha, delta, theta, gamma and omega of :func:`cema`."""
        return self.alpha, self.delta, *_without_angle(self.gamma), self.omega


def _without_angle(gamma_RN1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return theta and gamma of :func:`cema` that make it real."""
    theta_R11 = gamma_RN1.new_full((len(gamma_RN1), 1, 1), NO_ANGLE)
    return theta_R11, torch.cat([gamma_RN1, torch.zeros_like(gamma_RN1)], dim=-1)


class NoAverage(nn.Module):
    """Return the input in the place of a moving average, with its methods and without a state."""

    def __init__(self, bidirectional: bool) -> None:
        super().__init__()
        self.causal = not bidirectional
        self.chunk_parallel: ChunkParallel | None = None  # nothing travels

    def start(
        self, x_BLD: torch.Tensor, padding_mask_BL: torch.Tensor | None, state: None
    ) -> Callable[[], None]:
        """Fetch nothing."""
        return lambda: None

    def forward(
        self, x_BLD: torch.Tensor, padding_mask_BL: torch.Tensor | None = None, state: None = None
    ) -> tuple[torch.Tensor, None]:
        """Map (B, L, D) to itself."""
        return x_BLD, None


def build_average(config: MegalodonConfig) -> ComplexEMA | NoAverage:
    """Build what ``config.moving_average`` names."""
    bidirectional = not config.causal
    if config.moving_average == "none":
        return NoAverage(bidirectional)
    layer_type = RealEMA if config.moving_average == "real" else ComplexEMA
    memory = config.cema_memory if config.cema_init == "spread" else None
    return layer_type(config.model_dim, config.cema_ndim, bidirectional, memory)


class MegaEMA(ComplexEMA):
    """Compute the moving average of Mega (arXiv 2209.10655, section 3.1).

    With ``p = sigmoid(delta)`` and ``q = 1 - p sigmoid(alpha)``, for every feature::

        h_t = q h_{t-1} + p beta x_t;    y_t = sum gamma h_t / sqrt(h) + omega x_t

    Bidirectional, a second average over the reversed sequence is added, so that the current step counts
    in both, as in Mega's published code; CEMA counts it once.  Without truncation.

    Parameters, in Mega's shapes and with its start: alpha, delta, beta (rows, h, 1), gamma (rows, h),
    omega (D).  (Delta and alpha have changed places in Megalodon.)
    """

    undecayed = ()  # Mega decays all parameters

    def create_parameters(self, rows: int, ndim: int) -> None:
        """Register the parameters without values."""
        self.alpha = nn.Parameter(torch.empty(rows, ndim, 1))
        self.delta = nn.Parameter(torch.empty(rows, ndim, 1))
        self.beta = nn.Parameter(torch.empty(rows, ndim, 1))
        self.gamma = nn.Parameter(torch.empty(rows, ndim))
        self.omega = nn.Parameter(torch.empty(self.dim))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw alpha, delta from N(0, 0.2), beta around 1 and -1 in turn, gamma, omega from N(0, 1)."""
        nn.init.normal_(self.alpha, std=0.2)
        nn.init.normal_(self.delta, std=0.2)
        nn.init.normal_(self.beta, std=0.02)
        self.beta[:, ::2] += 1.0
        self.beta[:, 1::2] -= 1.0
        nn.init.normal_(self.gamma)
        nn.init.normal_(self.omega)
        if self.memory is not None:
            spread_time_constants(self.alpha, self.delta, self.memory)

    def arguments(self) -> tuple[torch.Tensor, ...]:
        """Return the alpha, delta, theta, gamma and omega of :func:`cema`."""
        gamma_RN1 = self.beta.double() * self.gamma.double()[..., None]
        omega_D1 = self.omega.double()[:, None]
        if self.bidirectional:
            # CEMA reads the reversed average one step late: without the current step, and with one
            # factor of q less.
            forward_DN1, backward_DN1 = gamma_RN1.chunk(2)
            p_DN1 = self.delta[self.dim :].double().sigmoid()
            q_DN1 = 1 - p_DN1 * self.alpha[self.dim :].double().sigmoid()
            omega_D1 = omega_D1 + (p_DN1 * backward_DN1).sum(1) / p_DN1.shape[1] ** 0.5
            gamma_RN1 = torch.cat([forward_DN1, q_DN1 * backward_DN1])
        return self.delta, self.alpha, *_without_angle(gamma_RN1), omega_D1
