"""CEMA as the equations are written: one step of the recurrence after another.

The other backends are compared with it.  It shares no code with them and is never optimised.
"""

import math

import torch

from megalodon_tasks.cuda_ops.complex_ema.arguments import CemaCall


def cema_reference(call: CemaCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute equations 2 and 3 of arXiv 2404.08801 step by step.

    float64 is computed in float64 and everything else in float32.
    """
    x_BLD, *_, omega, state, padding_mask, bidirectional = call
    dtype = torch.float64 if x_BLD.dtype == torch.float64 else torch.float32
    x = x_BLD.to(dtype)
    if padding_mask is not None:
        x = x.masked_fill(padding_mask[:, :, None], 0.0)
    p, q, eta = _coefficients(*(tensor.to(dtype) for tensor in call.logits))
    y = omega.to(dtype)[:, 0] * x
    if bidirectional:
        dim = x.shape[2]
        forward, _ = _recurrence(x, p[:dim], q[:dim], eta[:dim], None)
        backward, _ = _recurrence(x.flip(1), p[dim:], q[dim:], eta[dim:], None)
        # The backward kernel starts at the next position, so that the current one counts once.
        y = y + forward
        y = y + torch.cat([backward.flip(1)[:, 1:], torch.zeros_like(x[:, :1])], dim=1)
        state = None
    else:
        ema, state = _recurrence(x, p, q, eta, state)
        y = y + ema
    if padding_mask is not None:
        y = y.masked_fill(padding_mask[:, :, None], 0.0)
    return y.to(x_BLD.dtype), state


def _coefficients(
    alpha_DN1: torch.Tensor,
    delta_DN1: torch.Tensor,
    theta_D11: torch.Tensor,
    gamma_DN2: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return p, q and eta, each (D, N): the weights of inputs, of the last state, and of outputs."""
    order = alpha_DN1.shape[1]
    p = torch.sigmoid(alpha_DN1[:, :, 0])
    radius = 1 - p * torch.sigmoid(delta_DN1[:, :, 0])
    k = torch.arange(1, order + 1, dtype=p.dtype, device=p.device)
    angle = k * torch.sigmoid(theta_D11[:, :, 0]) * (2 * math.pi / order)
    # Not torch.polar, whose gradient with respect to a radius of zero is zero.
    q = torch.complex(radius * angle.cos(), radius * angle.sin())
    eta = torch.complex(gamma_DN2[:, :, 0], gamma_DN2[:, :, 1]) / math.sqrt(order)
    return p, q, eta


def _recurrence(
    x_BLD: torch.Tensor,
    p_DN: torch.Tensor,
    q_DN: torch.Tensor,
    eta_DN: torch.Tensor,
    state: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``y_t = Re(sum_n eta_n s_t,n)`` with ``s_t = q s_{t-1} + p x_t``, and the last state."""
    batch, length, dim = x_BLD.shape
    if state is None:
        state = q_DN.new_zeros(batch, dim, q_DN.shape[1])
    state = state.to(q_DN.dtype)
    outputs = []
    for t in range(length):
        state = q_DN * state + p_DN * x_BLD[:, t, :, None]
        outputs.append((eta_DN * state).sum(-1).real)
    return torch.stack(outputs, dim=1), state
