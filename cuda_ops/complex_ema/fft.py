"""CEMA's ``fft`` backend: one long convolution in the frequency domain.

The paper's implementation has this form.  Here the kernel is a product of two small tables of powers,
the two directions share one kernel that wraps around, transforms have a fast length and work on a part
of the channels at a time, and the backward reuses the spectrum of the input.
"""

import math
from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops.autocast import without_autocast
from megalodon_tasks.cuda_ops.complex_ema.arguments import CemaCall
from megalodon_tasks.cuda_ops.complex_ema.coefficients import (
    Coefficients,
    coefficients,
    power,
    powers,
)
from megalodon_tasks.cuda_ops.operator import DifferentiableOperator, empty_like

# Numbers of a transform that are worked on together, few enough to stay in the caches.
_CHUNK = 1 << 20
# Channels that share a cache line of the input.
_LINE = 16


@without_autocast
def cema_fft(call: CemaCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute :func:`cema` by FFT; time and memory are in proportion to ``L log L`` and ``L``."""
    x_BLD, *_, omega, state, padding_mask, bidirectional = call
    dtype = torch.float64 if x_BLD.dtype == torch.float64 else torch.float32
    coeffs = coefficients(*call.logits)
    length, dim = x_BLD.shape[1:]
    if padding_mask is not None:
        x_BLD = x_BLD.masked_fill(padding_mask[:, :, None], 0.0)
    omega_D1 = omega.to(dtype)
    if bidirectional:
        forward = _Tables(coeffs.rows(0, dim), length, dtype).kernel()
        backward = _Tables(coeffs.rows(dim, 2 * dim), length, dtype).kernel()
        gap = forward.new_zeros(dim, fast_length(2 * length - 1) - (2 * length - 1))
        taps = [forward[:, :1] + omega_D1, forward[:, 1:], gap, backward[:, : length - 1].flip(1)]
        y_BLD, state = _convolve(x_BLD, torch.cat(taps, dim=1)), None
    else:
        tables = _Tables(coeffs, length, dtype)
        kernel = tables.kernel()
        gap = kernel.new_zeros(dim, fast_length(2 * length - 1) - length)
        taps = [kernel[:, :1] + omega_D1, kernel[:, 1:], gap]
        y_BLD = _convolve(x_BLD, torch.cat(taps, dim=1))
        if state is not None:
            state = state.to(torch.complex128).transpose(0, 1)
            y_BLD = y_BLD + tables.response(state).to(y_BLD.dtype)
        state = tables.final_state(x_BLD, state).to(
            torch.complex128 if dtype == torch.float64 else torch.complex64
        )
    if padding_mask is not None:
        y_BLD = y_BLD.masked_fill(padding_mask[:, :, None], 0.0)
    return y_BLD, state


def fast_length(least: int) -> int:
    """Return the smallest even number >= ``least`` that is a power of two times 1, 3, 5, 9 or 15."""
    candidates = []
    for odd in (1, 3, 5, 9, 15):
        twos = max(1, math.ceil(math.log2(max(1, least / odd))))
        candidates.append(odd << twos)
    return min(candidates)


class _Tables:
    """Tables of q**t for t below ``length`` as ``q**(T i) q**j``, each of about sqrt(length) powers."""

    def __init__(self, coeffs: Coefficients, length: int, dtype: torch.dtype) -> None:
        self.coeffs = coeffs
        self.length = length
        self.fine_steps = max(1, math.isqrt(length))
        self.coarse_steps = -(-length // self.fine_steps)
        log_radius, angle = coeffs.log_radius, coeffs.angle
        fine = powers(log_radius, angle, self.fine_steps, dtype)
        coarse = powers(
            self.fine_steps * log_radius, self.fine_steps * angle, self.coarse_steps, dtype
        )
        self.fine_DTN, self.coarse_DIN = torch.view_as_complex(fine), torch.view_as_complex(coarse)

    def kernel(self) -> torch.Tensor:
        """Return (D, L): Re sum_n eta p q**t."""
        return self._expand(self._eta()[:, None] * self.coeffs.p[:, None])[:, 0]

    def response(self, state_DBN: torch.Tensor) -> torch.Tensor:
        """Return what the state adds to the outputs (B, L, D): Re sum_n eta q**(t + 1) s_0."""
        read = self._eta() * power(self.coeffs.log_radius, self.coeffs.angle, 1)
        return self._expand(read[:, None] * state_DBN).permute(1, 2, 0)

    def final_state(self, x_BLD: torch.Tensor, state_DBN: torch.Tensor | None) -> torch.Tensor:
        """Return (B, D, N): q**L s_0 + sum_t p q**(L - 1 - t) x_t."""
        write = torch.view_as_real(self.fine_DTN.flip(1)).flatten(2)
        sums_DBIN = torch.view_as_complex(fft_block_sums_op(x_BLD, write).unflatten(3, (-1, 2)))
        state = (sums_DBIN * self.coarse_DIN.flip(1)[:, None]).sum(2) * self.coeffs.p[:, None]
        if state_DBN is not None:
            decay = power(self.coeffs.log_radius, self.coeffs.angle, self.length)
            state = state + decay[:, None] * state_DBN
        return state.transpose(0, 1)

    def _eta(self) -> torch.Tensor:
        return torch.complex(self.coeffs.eta_re, self.coeffs.eta_im)

    def _expand(self, weight_DMN: torch.Tensor) -> torch.Tensor:
        """Return (D, M, L): Re sum_n weight q**t, by one real product of the two tables."""
        scaled = weight_DMN.to(self.coarse_DIN.dtype)[:, :, None] * self.coarse_DIN[:, None]
        rows = torch.view_as_real(scaled.conj().resolve_conj()).flatten(3).flatten(1, 2)
        product = torch.bmm(rows, torch.view_as_real(self.fine_DTN).flatten(2).mT)
        return product.unflatten(1, scaled.shape[1:3]).flatten(2)[:, :, : self.length]


class _Arguments(NamedTuple):
    x: torch.Tensor  # (B, L, D)
    taps: torch.Tensor  # (D, n), which wrap around after the longest lag; n is even
    save: bool  # whether the backward will ask for the gradient of the taps


class _Results(NamedTuple):
    y: torch.Tensor  # (B, L, D): y_t = sum_s taps_(t - s) x_s
    response: torch.Tensor  # (D, n / 2 + 1, 2), transform of the taps
    spectrum: torch.Tensor  # (B, D, n / 2 + 1, 2), transform of x, if saved


def _allocate(call: _Arguments) -> _Results:
    batch, _, dim = call.x.shape
    frequencies = call.taps.shape[1] // 2 + 1
    spectrum = (batch, dim, frequencies, 2) if call.save else (0, 2)
    new = call.taps.new_empty
    return _Results(empty_like(call.x), new(dim, frequencies, 2), new(spectrum))


def _forward(call: _Arguments) -> _Results:
    x_BLD, taps_DT, save = call
    steps, results = taps_DT.shape[1], _allocate(call)
    responses, spectra = (torch.view_as_complex(part) for part in results[1:])
    for channels in _chunks(x_BLD, steps):
        responses[channels] = torch.fft.rfft(taps_DT[channels])
        spectrum = _spectrum(x_BLD[:, :, channels], steps, taps_DT.dtype)
        _to_steps(spectrum * responses[channels], steps, results.y[:, :, channels])
        if save:
            spectra[:, channels] = spectrum
    return results


def _backward(
    call: _Arguments, grads: list[torch.Tensor], saved: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    (grad_BLD,), steps = grads, call.taps.shape[1]
    responses, spectra = map(torch.view_as_complex, saved)
    grad_x, grad_taps = empty_like(call.x), torch.zeros_like(call.taps)
    for channels in _chunks(grad_BLD, steps):
        spectrum = _spectrum(grad_BLD[:, :, channels], steps, call.taps.dtype)
        if call.save:
            summed = (spectra[:, channels].conj_physical() * spectrum).sum(0)
            grad_taps[channels] = torch.fft.irfft(summed, steps)
        spectrum.mul_(responses[channels].conj_physical())
        _to_steps(spectrum, steps, grad_x[:, :, channels])
    return grad_x, grad_taps


fft_convolution_op = DifferentiableOperator(
    "fft_convolution",
    _Arguments,
    _Results,
    forward=_forward,
    fake=_allocate,
    backward=_backward,
    differentiable=("y",),
    saved=("response", "spectrum"),
    gradients=("x", "taps"),
).register()


class _SumArguments(NamedTuple):
    x: torch.Tensor  # (B, L, D)
    write: torch.Tensor  # (D, T, K)


class _Sums(NamedTuple):
    sums: torch.Tensor  # (D, B, I, K): each of I blocks of x times ``write``


def _allocate_sums(call: _SumArguments) -> _Sums:
    (batch, length, dim), (_, steps, states) = call.x.shape, call.write.shape
    return _Sums(call.write.new_empty(dim, batch, -(-length // steps), states))


def _sums_forward(call: _SumArguments) -> _Sums:
    rows = _blocks(*call)
    return _Sums(torch.bmm(rows.flatten(1, 2), call.write).unflatten(1, rows.shape[1:3]))


def _sums_backward(
    call: _SumArguments, grads: list[torch.Tensor], _: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, grad = _blocks(*call), grads[0].flatten(1, 2)
    grad_rows = torch.bmm(grad, call.write.mT).view_as(rows).flatten(2)
    grad_x = grad_rows[:, :, -call.x.shape[1] :].permute(1, 2, 0).to(call.x.dtype)
    return grad_x, torch.bmm(rows.flatten(1, 2).mT, grad)


# Saves only ``x`` itself, because the final state is seldom differentiated.
fft_block_sums_op = DifferentiableOperator(
    "fft_block_sums",
    _SumArguments,
    _Sums,
    forward=_sums_forward,
    fake=_allocate_sums,
    backward=_sums_backward,
    differentiable=("sums",),
    saved=(),
    gradients=("x", "write"),
).register()


def _convolve(x_BLD: torch.Tensor, taps_DT: torch.Tensor) -> torch.Tensor:
    save = torch.is_grad_enabled() and taps_DT.requires_grad
    return fft_convolution_op(x_BLD, taps_DT, save)[0]


def _blocks(x_BLD: torch.Tensor, write_DTK: torch.Tensor) -> torch.Tensor:
    """Return x as (D, B, I, T) for the T of ``write``, with zeros before the first step."""
    batch, length, dim = x_BLD.shape
    steps = write_DTK.shape[1]
    rows = write_DTK.new_zeros(dim, batch, -(-length // steps) * steps)
    rows[:, :, -length:].copy_(x_BLD.permute(2, 0, 1))
    return rows.unflatten(2, (-1, steps))


def _chunks(x_BLD: torch.Tensor, steps: int) -> list[slice]:
    """Divide the channels into parts that are worked on together."""
    batch, _, dim = x_BLD.shape
    several = max(_LINE, _CHUNK // (max(batch, 1) * steps))
    return [slice(first, min(first + several, dim)) for first in range(0, dim, several)]


def _spectrum(x_BLD: torch.Tensor, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the transform (B, D, steps / 2 + 1) of ``x`` followed by zeros."""
    batch, length, dim = x_BLD.shape
    padded = x_BLD.new_empty(batch, dim, steps, dtype=dtype)
    padded[:, :, :length].copy_(x_BLD.transpose(1, 2))
    padded[:, :, length:] = 0.0
    return torch.fft.rfft(padded)


def _to_steps(spectrum: torch.Tensor, steps: int, target_BLD: torch.Tensor) -> None:
    """Write the first steps of the inverse transform to ``target``."""
    product = torch.fft.irfft(spectrum, steps)
    target_BLD.copy_(product[:, :, : target_BLD.shape[1]].transpose(1, 2))
