"""The public ``cema``: check the arguments, choose a backend, call it."""

import torch

from megalodon_tasks.cuda_ops import checks
from megalodon_tasks.cuda_ops.complex_ema.arguments import CemaCall
from megalodon_tasks.cuda_ops.dispatch import pick

OP = "cema"


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
    """Compute a complex exponential moving average over time, equations 2 and 3 of arXiv 2404.08801.

    With ``p = sigmoid(alpha)``, ``q_k = (1 - p sigmoid(delta)) exp(i k sigmoid(theta) 2 pi / N)`` for
    k = 1..N and ``eta = (gamma_re + i gamma_im) / sqrt(N)``, for every channel::

        s_t = q s_{t-1} + p x_t            (N complex components)
        y_t = Re(sum_k eta_k s_t,k) + omega x_t

    Only q has a phase; moving it into eta gives equation 2.  With ``bidirectional`` a second
    set of coefficients runs over the reversed sequence and is read one step late, so that the current
    position counts once.

    NaN or infinity at a real step reaches the outputs from there on.  On ``native`` and ``reference`` it
    reaches no earlier one; on ``torch`` and ``triton``, which multiply blocks by matrices with zeros in
    them, also earlier ones of its own block (of 16 steps on ``triton``, of 96 at most on ``torch``), and
    on ``fft`` all outputs of its sequence, as it does with ``bidirectional``.

    Args:
        x: input (B, L, D), a real floating dtype.
        alpha: logits of the input weight (D, N, 1), or (2D, N, 1) if ``bidirectional`` with the
            forward direction in the first D rows; the same holds for the next three.
        delta: logits of the damping (D, N, 1).
        theta: logit of the base angle (D, 1, 1).
        gamma: real and imaginary part of the output weights (D, N, 2).
        omega: weight of the skip connection (D, 1).
        state: complex (B, D, N), s_0 before the first step; None is zeros.  Not if ``bidirectional``.
        padding_mask: bool (B, L), True at padding.  A padded step has input zero whatever ``x`` holds
            (NaN too) and output zero; time still passes, so that the state decays.
        bidirectional: see above.  The returned state is then None.
        backend: ``reference``, ``torch``, ``native``, ``fft``, ``triton``; None chooses by device
            (see ``dispatch``).

    Returns:
        ``(y, state)``: y (B, L, D) in the dtype of ``x``, and s_L, complex (B, D, N), complex128 if
        ``x`` is float64 and complex64 otherwise.  They are differentiable in all inputs.

    Raises:
        ValueError: a tensor has the wrong shape, dtype or device, or the backend is unknown.
        BackendUnavailable: the backend was asked for by name and cannot run here.
    """
    call = CemaCall(x, alpha, delta, theta, gamma, omega, state, padding_mask, bidirectional)
    _check(call)
    if 0 in x.shape[:2]:
        return _nothing(call)
    return pick(OP, backend, x.device, x.dtype)(call)


def _nothing(call: CemaCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what a call without rows or without steps does: no output, the state that it was given."""
    x, alpha, omega, state = call.x, call.alpha, call.omega, call.state
    y = x * omega[:, 0].to(x.dtype)
    if call.bidirectional:
        return y, None
    dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
    if state is None:
        return y, x.new_zeros(x.shape[0], x.shape[2], alpha.shape[1], dtype=dtype)
    return y, state.to(dtype)


def _check(call: CemaCall) -> None:
    x, alpha, delta, theta, gamma, omega, state, padding_mask, bidirectional = call
    checks.check_shape(OP, "x", x, (None, None, None), "(batch, length, dim)")
    batch, length, dim = x.shape
    rows, row_name = (2 * dim, "2 * dim") if bidirectional else (dim, "dim")
    checks.check_shape(OP, "alpha", alpha, (rows, None, 1), f"({row_name}, order, 1)")
    order = alpha.shape[1]
    if order < 1:
        raise ValueError(
            f"{OP}: alpha has shape {tuple(alpha.shape)}, expected an order of at least 1"
        )
    checks.check_shape(OP, "delta", delta, (rows, order, 1), f"({row_name}, order, 1)")
    checks.check_shape(OP, "theta", theta, (rows, 1, 1), f"({row_name}, 1, 1)")
    checks.check_shape(OP, "gamma", gamma, (rows, order, 2), f"({row_name}, order, 2)")
    checks.check_shape(OP, "omega", omega, (dim, 1), "(dim, 1)")
    tensors = dict(zip(call._fields[:6], call[:6], strict=True))
    for name, tensor in tensors.items():
        checks.check_float(OP, name, tensor)
    checks.check_padding_mask(OP, padding_mask, batch, length)
    if state is not None:
        _check_state(state, (batch, dim, order), bidirectional)
    checks.check_same_device(OP, **tensors, state=state, padding_mask=padding_mask)


def _check_state(state: torch.Tensor, shape: tuple[int, int, int], bidirectional: bool) -> None:
    if bidirectional:
        raise ValueError(
            f"{OP}: state of shape {tuple(state.shape)} was given with bidirectional=True, which has "
            "no state to carry; pass state=None"
        )
    checks.check_shape(OP, "state", state, shape, "(batch, dim, order)")
    if not state.is_complex():
        raise ValueError(f"{OP}: state has dtype {state.dtype}, expected complex64 or complex128")
