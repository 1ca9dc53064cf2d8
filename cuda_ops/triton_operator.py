"""Differentiable operators of ``torch.library``, each described once by the tuple of its arguments.

The schemas of an operator and of its backward operator, what is saved between them and which gradients
are returned all follow from two NamedTuples: one of the arguments, one of the results.
``torch.compile`` sees opaque operators ``megalodon_tasks::<name>`` and takes them without a graph break.
"""

import typing
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import FunctionCtx

from megalodon_tasks.cuda_ops.triton_helpers import empty_like

_SCHEMA_TYPES = {
    torch.Tensor: "Tensor",
    torch.Tensor | None: "Tensor?",
    int: "SymInt",
    bool: "bool",
    float: "float",
}


def differentiable_operator(
    name: str,
    arguments: type[tuple],
    results: type[tuple],
    *,
    forward: Callable[..., tuple],
    fake: Callable[..., tuple],
    backward: Callable[..., tuple],
    differentiable: tuple[str, ...],
    saved: tuple[str, ...],
    gradients: tuple[str, ...],
) -> torch.library.CustomOpDef:
    """Define the operators ``name`` and ``name_backward`` and connect them.

    Args:
        name: name in the namespace ``megalodon_tasks``.
        arguments: NamedTuple of tensors, tensors or None, and last of numbers.
        results: NamedTuple of tensors.
        forward: called with ``arguments``, returns ``results``.
        fake: the same on tensors without data.
        backward: called with ``arguments``, the list of gradients of the results ``differentiable``
            (None where nothing depends on one) and the list of results ``saved``; returns the gradients
            of the arguments ``gradients``, each None where the argument is None.
        differentiable: names of the results that have a gradient.
        saved: names of the results that the backward pass needs.
        gradients: names of the arguments that get a gradient.
    """
    types = {field: _SCHEMA_TYPES[t] for field, t in typing.get_type_hints(arguments).items()}
    schema = ", ".join(f"{kind} {field}" for field, kind in types.items())
    given = ", ".join(f"Tensor? grad_{field}" for field in differentiable)
    kept = "".join(f", Tensor saved_{field}" for field in saved)
    start, stop = len(differentiable), len(differentiable) + len(types)
    count = sum(kind.startswith("Tensor") for kind in types.values())

    def run_backward(*values: Any) -> tuple[torch.Tensor, ...]:
        call = arguments(*values[start:stop])
        found = backward(call, list(values[:start]), list(values[stop:]))
        return tuple(call[0].new_empty(0) if grad is None else grad for grad in found)

    def fake_backward(*values: Any) -> tuple[torch.Tensor, ...]:
        inputs = (getattr(arguments(*values[start:stop]), field) for field in gradients)
        return tuple(
            values[start].new_empty(0) if tensor is None else empty_like(tensor)
            for tensor in inputs
        )

    operator = torch.library.custom_op(
        f"megalodon_tasks::{name}",
        lambda *values: tuple(forward(arguments(*values))),
        mutates_args=(),
        schema=f"({schema}) -> {_tensors(len(results._fields))}",
    )
    operator.register_fake(lambda *values: tuple(fake(arguments(*values))))
    backward_operator = torch.library.custom_op(
        f"megalodon_tasks::{name}_backward",
        run_backward,
        mutates_args=(),
        schema=f"({given}, {schema}{kept}) -> {_tensors(len(gradients))}",
    )
    backward_operator.register_fake(fake_backward)

    def setup_context(ctx: FunctionCtx, inputs: tuple, output: tuple) -> None:
        output = results(*output)
        ctx.save_for_backward(*inputs[:count], *(getattr(output, field) for field in saved))
        ctx.numbers = inputs[count:]
        constant = (
            value for field, value in output._asdict().items() if field not in differentiable
        )
        ctx.mark_non_differentiable(*constant)
        ctx.set_materialize_grads(False)

    def propagate(ctx: FunctionCtx, *grads: torch.Tensor | None) -> tuple:
        given = [grads[results._fields.index(field)] for field in differentiable]
        tensors = ctx.saved_tensors
        call = arguments(*tensors[:count], *ctx.numbers)
        found: dict[str, torch.Tensor] = {}
        if any(grad is not None for grad in given):
            computed = backward_operator(*given, *call, *tensors[count:])
            found = dict(zip(gradients, computed, strict=True))
        return tuple(
            None if value is None else found.get(field) for field, value in call._asdict().items()
        )

    operator.register_autograd(propagate, setup_context=setup_context)
    return operator


def _tensors(count: int) -> str:
    return f"({', '.join(['Tensor'] * count)})"
