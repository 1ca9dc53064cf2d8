"""The choice of a backend for an op.  Only this file chooses one by device.

Order of precedence: the ``backend=`` argument of the call, ``with use_backend(...)``, the
environment variable ``MEGALODON_OPS_BACKEND``, and last the default for the device of the first tensor:
``triton`` or else ``fused`` on CUDA, ``native`` on a CPU, ``torch`` where the op has none of these or
they cannot run, and in ``torch.export``.  A backend that was given by name and cannot run raises
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
from megalodon_tasks.cuda_ops.transforms import transforms_are_active

ENV_VARIABLE = "MEGALODON_OPS_BACKEND"

# op -> backend -> "module:function", below this package.  Modules are imported on first use, so that
# everything else can be imported on a machine without triton.
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
        "native": "norms.native_op:timestep_norm_native",
        "triton": "norms.timestep.triton_op:timestep_norm_triton",
    },
    "sequence_norm": {
        "reference": "norms.sequence.reference:sequence_norm_reference",
        "torch": "norms.sequence.torch_op:sequence_norm_torch",
        "native": "norms.native_op:sequence_norm_native",
        "triton": "norms.sequence.triton_op:sequence_norm_triton",
    },
    "rms_norm": {
        "reference": "norms.rms.reference:rms_norm_reference",
        "torch": "norms.rms.torch_op:rms_norm_torch",
        "fused": "norms.rms.torch_op:rms_norm_fused",
    },
    "chunk_attention": {
        "reference": "attention.reference:chunk_attention_reference",
        "torch": "attention.torch_op:chunk_attention_torch",
        "triton": "attention.triton_op:chunk_attention_triton",
    },
    "cross_attention": {
        "reference": "attention.reference:cross_attention_reference",
        "torch": "attention.torch_op:cross_attention_torch",
        "triton": "attention.triton_op:cross_attention_triton",
    },
}

# By type of device, in order of preference; last comes ``torch``, which every op has and runs anywhere.
_DEFAULTS = {"cuda": ("triton", "fused"), "cpu": ("native",)}

# Backends that are all operators of ours; ``torch`` has a plain form for transforms.
_WITHOUT_TRANSFORMS = ("triton", "native", "fft")

# Features per head of q and k beyond which the kernels have no room for any other tile.
WIDEST_KEY = 512

# backend -> op -> implementation, empty until the backend is chosen for some op.
_loaded: dict[str, dict[str, Callable]] = {
    backend: {} for table in BACKENDS.values() for backend in table
}
_override: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)


class BackendUnavailable(RuntimeError):
    """A backend was given by name and cannot run this call on this machine."""


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops inside the ``with`` block on backend ``name``, except calls that name another."""
    token = _override.set(name)
    try:
        yield
    finally:
        _override.reset(token)


def _why_not(
    backend: str, device: torch.device, dtype: torch.dtype | None, key_width: int
) -> str | None:
    """Return why ``backend`` cannot run such tensors on ``device``, or None if it can."""
    if backend in _WITHOUT_TRANSFORMS and transforms_are_active():
        return (
            "it has no rules for torch.func (vmap, grad, jvp) and forward-mode differentiation, "
            "of which one is active"
        )
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
    return native.why_not(native.CEMA) or native.why_not(native.NORMS)


def _load(backend: str) -> str:
    """Import ``backend`` of all ops, so that torch.compile sees a table that does not change."""
    if not _loaded[backend]:
        for op, table in BACKENDS.items():
            if backend in table:
                module, function = table[backend].split(":")
                module = importlib.import_module(f"{__package__}.{module}")
                _loaded[backend][op] = getattr(module, function)
    return backend


def pick(
    op: str,
    backend: str | None,
    device: torch.device,
    dtype: torch.dtype | None = None,
    key_width: int = 0,
) -> Callable:
    """Return the implementation of ``op`` for tensors on ``device`` and, if given, of ``dtype``.

    ``key_width`` is the number of features per head of the keys, for an op that has keys.

    Raises ``ValueError`` for a name that this op does not have and :class:`BackendUnavailable`
    for one that cannot run here.
    """
    # Read here, where torch.compile sees it: code compiled under another choice is compiled again.
    name = backend or _override.get()
    return _loaded[_choose(op, name, device, dtype, key_width)][op]


# torch.compile cannot follow an import, so it runs this function and keeps the name.
@torch.compiler.assume_constant_result
def _choose(
    op: str, name: str | None, device: torch.device, dtype: torch.dtype | None, key_width: int
) -> str:
    name = name or os.environ.get(ENV_VARIABLE) or None
    table = BACKENDS[op]
    tensors = device, dtype, key_width
    if name is None:
        # An exported program holds what runs without this package: ``torch`` in its plain form.
        defaults = () if torch.compiler.is_exporting() else _DEFAULTS.get(device.type, ())
        for default in defaults:
            if default in table:
                reason = _why_not(default, *tensors)
                if reason is None:
                    return _load(default)
                if default == "native" and dtype != torch.float64:
                    native.warn_once(
                        "backend",
                        f"Ops run on backend torch, slower than native, because {reason} "
                        f"({ENV_VARIABLE}=torch chooses it without this warning)",
                    )
        return _load("torch")
    if name == "triton" and "fused" in table:
        name = "fused"  # so that one name serves a model that calls several ops
    if name not in table:
        raise ValueError(
            f"{op}: backend {name!r} is not one of {sorted(table)}; "
            f"pass one of these as backend= or in {ENV_VARIABLE}"
        )
    reason = _why_not(name, *tensors)
    if reason is not None:
        usable = [other for other in table if _why_not(other, *tensors) is None]
        raise BackendUnavailable(f"{op}: backend {name!r} cannot run: {reason}; usable: {usable}")
    return _load(name)
