"""The public ``cema``: check the arguments, choose a backend, call it."""

import torch

from megalodon_tasks.cuda_ops import checks
from megalodon_tasks.cuda_ops.dispatch import pick


def cema(
    x: torch.Tensor,
    alpha: torch.Tensor,
    delta: torch.Tensor,
    theta: torch.Tensor,
    gamma: torch.Tensor,
    omega: torch.Tensor,
    *,
    state: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    bidirectional: bool = False,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Complex exponential moving average over time, equations 2 and 3 of arXiv 2404.08801.

    With ``p = sigmoid(alpha)``, ``q_k = (1 - p sigmoid(delta)) exp(i k sigmoid(theta) 2 pi / N)`` for
    k = 1..N and ``eta = (gamma_re + i gamma_im) / sqrt(N)``, for every channel::

        s_t = q s_{t-1} + p x_t            (N complex components)
        y_t = Re(sum_k eta_k s_t,k) + omega x_t

    The phase stands in q alone; moving it into eta gives equation 2.  With ``bidirectional`` a second
    set of coefficients runs over the reversed sequence and is read one step late, so that the current
    position counts once.

    Args:
        x: input (B, L, D), a real floating dtype, L >= 1.
        alpha: logits of the input weight (D, N, 1), or (2D, N, 1) if ``bidirectional`` with the
            forward direction in the first D rows; the same holds for the next three.
        delta: logits of the damping (D, N, 1).
        theta: logit of the base angle (D, 1, 1).
        gamma: real and imaginary part of the output weights (D, N, 2).
        omega: weight of the skip connection (D, 1).
        state: complex (B, D, N), s_0 before the first step; None is zeros.  Causal only.
        padding_mask: bool (B, L), True at padding.  A padded step has input zero whatever ``x`` holds
            (NaN too) and output zero; time still passes, so that the state decays.
        bidirectional: see above.  The returned state is then None.
        backend: ``reference``, ``torch``, ``fft`` ...; None chooses by device (see ``dispatch``).

    Returns:
        ``(y, state)``: y (B, L, D) in the dtype of ``x``, and s_L, complex (B, D, N), complex128 if
        ``x`` is float64 and complex64 otherwise.  Both are differentiable in all inputs.

    Raises:
        ValueError: a tensor has the wrong shape, dtype or device, or the backend is unknown.
        BackendUnavailable: the backend was asked for by name and cannot run here.
    """
    _check(x, alpha, delta, theta, gamma, omega, state, padding_mask, bidirectional)
    run = pick("cema", backend, x.device, x.dtype)
    return run(
        x,
        alpha,
        delta,
        theta,
        gamma,
        omega,
        state=state,
        padding_mask=padding_mask,
        bidirectional=bidirectional,
    )


def _check(
    x: torch.Tensor,
    alpha: torch.Tensor,
    delta: torch.Tensor,
    theta: torch.Tensor,
    gamma: torch.Tensor,
    omega: torch.Tensor,
    state: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    bidirectional: bool,
) -> None:
    checks.check_shape("cema", "x", x, (None, None, None), "(batch, length, dim)")
    batch, length, dim = x.shape
    if length < 1:
        raise ValueError(f"cema: x has shape {tuple(x.shape)}, wanted at least one step of time")
    rows, of_dim = (2 * dim, "2 * dim") if bidirectional else (dim, "dim")
    checks.check_shape("cema", "alpha", alpha, (rows, None, 1), f"({of_dim}, order, 1)")
    order = alpha.shape[1]
    if order < 1:
        raise ValueError(
            f"cema: alpha has shape {tuple(alpha.shape)}, wanted an order of at least 1"
        )
    checks.check_shape("cema", "delta", delta, (rows, order, 1), f"({of_dim}, order, 1)")
    checks.check_shape("cema", "theta", theta, (rows, 1, 1), f"({of_dim}, 1, 1)")
    checks.check_shape("cema", "gamma", gamma, (rows, order, 2), f"({of_dim}, order, 2)")
    checks.check_shape("cema", "omega", omega, (dim, 1), "(dim, 1)")
    parameters = {"alpha": alpha, "delta": delta, "theta": theta, "gamma": gamma, "omega": omega}
    for name, tensor in {"x": x, **parameters}.items():
        checks.check_float("cema", name, tensor)
    checks.check_padding_mask("cema", padding_mask, batch, length)
    _check_state(state, batch, dim, order, bidirectional)
    checks.check_same_device("cema", x=x, **parameters, state=state, padding_mask=padding_mask)


def _check_state(
    state: torch.Tensor | None, batch: int, dim: int, order: int, bidirectional: bool
) -> None:
    if state is None:
        return
    if bidirectional:
        raise ValueError(
            f"cema: state of shape {tuple(state.shape)} was given with bidirectional=True, which has "
            "no state to carry; pass state=None"
        )
    checks.check_shape("cema", "state", state, (batch, dim, order), "(batch, dim, order)")
    if not state.is_complex():
        raise ValueError(f"cema: state has dtype {state.dtype}, wanted complex64 or complex128")
