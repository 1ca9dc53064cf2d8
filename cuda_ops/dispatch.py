"""Choosing a backend for an op.  The only file of the library that looks at devices.

Order of precedence: the ``backend=`` argument of the call, ``with use_backend(...)``, the
environment variable ``MEGALODON_OPS_BACKEND``, and last the default for the device of the first
tensor: ``triton`` on CUDA, ``native`` on a CPU where the op has it, ``torch`` elsewhere.  A default
that cannot serve falls back to ``torch``; a backend asked for by name that cannot serve raises
:class:`BackendUnavailable`.
"""

import contextlib
import contextvars
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator

import torch

from megalodon_tasks.cuda_ops import native

ENV_VARIABLE = "MEGALODON_OPS_BACKEND"

# op -> backend -> "module:function", below this package.  Modules are imported on first use, so
# that a machine without triton imports everything else.
BACKENDS: dict[str, dict[str, str]] = {
    "cema": {
        "reference": "complex_ema.reference:cema_reference",
        "torch": "complex_ema.torch_op:cema_torch",
        "native": "complex_ema.native_op:cema_native",
        "fft": "complex_ema.fft:cema_fft",
        "triton": "complex_ema.triton_op:cema_triton",
    },
    "timestep_norm": {
        "reference": "norms.timestep.reference:timestep_norm_reference",
        "torch": "norms.timestep.torch_op:timestep_norm_torch",
        "triton": "norms.timestep.triton_op:timestep_norm_triton",
    },
    "sequence_norm": {
        "reference": "norms.sequence.reference:sequence_norm_reference",
        "torch": "norms.sequence.torch_op:sequence_norm_torch",
        "triton": "norms.sequence.triton_op:sequence_norm_triton",
    },
    "chunk_attention": {
        "reference": "attention.reference:chunk_attention_reference",
        "torch": "attention.torch_op:chunk_attention_torch",
        "triton": "attention.triton_op:chunk_attention_triton",
    },
}

# By type of device; ``torch`` where an op has no such backend, or the backend cannot serve.
_DEFAULTS = {"cuda": "triton", "cpu": "native"}

# Features per head of q and k beyond which the kernels have no room for a tile of anything else.
WIDEST_KEY = 512

_loaded: dict[tuple[str, str], Callable] = {}
_override: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run this call on this machine."""


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops inside the ``with`` block on backend ``name`` unless a call says otherwise."""
    token = _override.set(name)
    try:
        yield
    finally:
        _override.reset(token)


def _why_not(
    backend: str, device: torch.device, dtype: torch.dtype | None, key_width: int
) -> str | None:
    """The reason why ``backend`` cannot serve such tensors on ``device`` here, or None if it can."""
    if backend == "native":
        return _why_not_native(device, dtype)
    if backend != "triton":
        return None
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install triton)"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "the tensors are on the CPU; set TRITON_INTERPRET=1 to run the kernels interpreted"
    if device.type not in ("cpu", "cuda"):
        return f"the kernels run on CUDA devices, the tensors are on {device}"
    if dtype == torch.float64:
        return "the kernels compute in float32, the tensors are float64"
    if key_width > WIDEST_KEY:
        return f"the kernels hold {WIDEST_KEY} features per head of q and k, these have {key_width}"
    return None


def _why_not_native(device: torch.device, dtype: torch.dtype | None) -> str | None:
    if device.type != "cpu":
        return f"the kernels run on a CPU, the tensors are on {device}"
    if dtype == torch.float64:
        return "the kernels compute in float32, the tensors are float64"
    return native.why_not(native.CEMA)


def _load(op: str, backend: str) -> str:
    if (op, backend) not in _loaded:
        module, function = BACKENDS[op][backend].split(":")
        module = importlib.import_module(f"{__package__}.{module}")
        _loaded[op, backend] = getattr(module, function)
    return backend


def pick(
    op: str,
    backend: str | None,
    device: torch.device,
    dtype: torch.dtype | None = None,
    key_width: int = 0,
) -> Callable:
    """The implementation of ``op`` for tensors on ``device`` and, if it is given, of ``dtype``.

    ``key_width`` is the number of features per head of the keys, for an op that has any.

    Raises ``ValueError`` for a name that this op does not have and :class:`BackendUnavailable`
    for one that cannot run here.
    """
    return _loaded[op, _choose(op, backend, device, dtype, key_width)]


# torch.compile cannot follow an import, so it runs this function and keeps the name.
@torch.compiler.assume_constant_result
def _choose(
    op: str, backend: str | None, device: torch.device, dtype: torch.dtype | None, key_width: int
) -> str:
    asked = backend or _override.get() or os.environ.get(ENV_VARIABLE) or None
    table = BACKENDS[op]
    tensors = device, dtype, key_width
    if asked is None:
        default = _DEFAULTS.get(device.type, "torch")
        if default not in table or _why_not(default, *tensors) is not None:
            default = "torch"
        return _load(op, default)
    if asked not in table:
        raise ValueError(
            f"{op}: backend {asked!r} is not one of {sorted(table)}; "
            f"pass one of these as backend= or in {ENV_VARIABLE}"
        )
    reason = _why_not(asked, *tensors)
    if reason is not None:
        usable = [name for name in table if _why_not(name, *tensors) is None]
        raise BackendUnavailable(f"{op}: backend {asked!r} cannot run: {reason}; usable: {usable}")
    return _load(op, asked)
