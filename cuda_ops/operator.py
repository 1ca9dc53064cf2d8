"""Differentiable operators of ``torch.library``, each described once by the tuple of its arguments.

The schemas of an operator and of its backward operator, what is saved between them and which gradients
are returned all follow from two NamedTuples: one of the arguments, one of the results.
``torch.compile`` sees opaque operators ``megalodon_tasks::<name>`` and takes them without a graph break.
They run outside of autocast.
"""

import functools
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import FunctionCtx

from megalodon_tasks.cuda_ops.autocast import without_autocast

_SCHEMA_TYPES = {
    torch.Tensor: "Tensor",
    torch.Tensor | None: "Tensor?",
    int: "SymInt",
    bool: "bool",
    float: "float",
}


@dataclass(frozen=True)
class DifferentiableOperator:
    """Definition of the operators ``name`` and ``name_backward``.

    name: name in the namespace ``megalodon_tasks``.
    arguments: NamedTuple of tensors, tensors or None, and last of numbers.
    results: NamedTuple of tensors.
    forward: called with ``arguments``, returns ``results``.
        Compiled graphs call it where flags of lazy conjugation are ignored: no ``Tensor.conj`` inside.
    fake: the same on tensors without data.
    backward: called with ``arguments``, the list of gradients of the results ``differentiable`` (None
        where nothing depends on one) and the list of results ``saved``; returns the gradients of the
        arguments ``gradients``, each None where the argument is None, none a view of another.
    differentiable: names of the results that have a gradient.
    saved: names of the results that the backward pass needs.
    gradients: names of the arguments that get a gradient.
    plain: called with ``arguments``, returns the results ``differentiable`` in plain PyTorch, from which
        second derivatives follow; None refuses them.
    """

    name: str
    arguments: type[tuple]
    results: type[tuple]
    forward: Callable[..., tuple]
    fake: Callable[..., tuple]
    backward: Callable[..., typing.Sequence[torch.Tensor | None]]
    differentiable: tuple[str, ...]
    saved: tuple[str, ...]
    gradients: tuple[str, ...]
    plain: Callable[..., tuple] | None = None

    def register(self) -> torch.library.CustomOpDef:
        """Register the two operators, connect them and return the first."""
        schema = ", ".join(f"{kind} {field}" for field, kind in self._types.items())
        grads = ", ".join(f"Tensor? grad_{field}" for field in self.differentiable)
        saved = "".join(f", Tensor saved_{field}" for field in self.saved)
        operator = _define(self.name, self._forward, schema, len(self.results._fields))
        backward = _define(
            f"{self.name}_backward",
            self._backward,
            f"{grads}, {schema}{saved}",
            len(self.gradients),
        )
        operator.register_fake(lambda *values: _returned(self.fake(self.arguments(*values))))
        backward.register_fake(self._fake_backward)
        backward.register_autograd(self._propagate_again, setup_context=self._setup_again)

        def propagate(ctx: FunctionCtx, *grads: torch.Tensor | None) -> tuple:
            return self._propagate(backward, ctx, grads)

        operator.register_autograd(propagate, setup_context=self._setup_context)
        return operator

    @functools.cached_property
    def _types(self) -> dict[str, str]:
        hints = typing.get_type_hints(self.arguments)
        return {field: _SCHEMA_TYPES[hint] for field, hint in hints.items()}

    @functools.cached_property
    def _tensors(self) -> int:
        """The number of arguments that are tensors or None."""
        return sum(kind.startswith("Tensor") for kind in self._types.values())

    def _split(self, values: tuple) -> tuple[Any, list, list]:
        """Divide what the backward operator receives: arguments, gradients, saved results."""
        start = len(self.differentiable)
        stop = start + len(self.arguments._fields)
        return self.arguments(*values[start:stop]), list(values[:start]), list(values[stop:])

    def _forward(self, *values: Any) -> torch.Tensor | tuple[torch.Tensor, ...]:
        results = without_autocast(self.forward)(self.arguments(*values))
        return _returned(result.contiguous() for result in results)

    def _backward(self, *values: Any) -> tuple[torch.Tensor, ...]:
        call, grads, saved = self._split(values)
        computed = without_autocast(self.backward)(call, grads, saved)
        return _returned(call[0].new_empty(0) if g is None else g.contiguous() for g in computed)

    def _fake_backward(self, *values: Any) -> tuple[torch.Tensor, ...]:
        call, _, _ = self._split(values)
        inputs = (getattr(call, field) for field in self.gradients)
        return _returned(call[0].new_empty(0) if x is None else empty_like(x) for x in inputs)

    def _setup_context(self, ctx: FunctionCtx, inputs: tuple, output: torch.Tensor | tuple) -> None:
        outputs = (output,) if isinstance(output, torch.Tensor) else output
        count, results = self._tensors, self.results(*outputs)._asdict()
        ctx.save_for_backward(*inputs[:count], *(results[field] for field in self.saved))
        ctx.numbers = inputs[count:]
        constant = (value for field, value in results.items() if field not in self.differentiable)
        ctx.mark_non_differentiable(*constant)
        ctx.set_materialize_grads(False)

    def _propagate(self, operator: Callable[..., tuple], ctx: FunctionCtx, grads: tuple) -> tuple:
        """Return a gradient, or None, for each argument; ``operator`` is the backward operator."""
        grads = [grads[self.results._fields.index(field)] for field in self.differentiable]
        count, tensors = self._tensors, ctx.saved_tensors
        call = self.arguments(*tensors[:count], *ctx.numbers)
        by_name: dict[str, torch.Tensor] = {}
        if any(grad is not None for grad in grads):
            computed = operator(*grads, *call, *tensors[count:])
            computed = (computed,) if isinstance(computed, torch.Tensor) else computed
            by_name = dict(zip(self.gradients, computed, strict=True))
        values = call._asdict().items()
        return tuple(None if value is None else by_name.get(field) for field, value in values)

    def _setup_again(self, ctx: FunctionCtx, inputs: tuple, output: tuple) -> None:
        call, grads, saved = self._split(inputs)
        ctx.save_for_backward(*grads, *call[: self._tensors])
        ctx.numbers = call[self._tensors :]
        ctx.set_materialize_grads(False)

    def _propagate_again(self, ctx: FunctionCtx, *grads: torch.Tensor | None) -> tuple:
        """Differentiate the backward operator: compute its gradients again, in plain PyTorch."""
        if self.plain is None:
            raise RuntimeError(
                f"{self.name}: this operator has no second derivative; "
                "run the op with backend='torch' or use_backend('torch'), which has"
            )
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # Fresh views, so that no input of the call is seen to depend on another.
            inputs = [
                tensor.view_as(tensor) if tensor is not None and tensor.requires_grad else tensor
                for tensor in ctx.saved_tensors
            ]
            first_grads, tensors = inputs[: len(self.differentiable)], inputs[-self._tensors :]
            call = self.arguments(*tensors, *ctx.numbers)
            firsts = _vjp(self.plain(call), first_grads, [getattr(call, f) for f in self.gradients])
            seconds = _vjp(firsts, grads, inputs, create_graph=create_graph)
        return (*seconds, *(None,) * (len(ctx.numbers) + len(self.saved)))


def _returned(results: Iterable[torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Return a single result as an operator returns it: not in a tuple."""
    results = tuple(results)
    return results[0] if len(results) == 1 else results


def _vjp(
    outputs: typing.Sequence[torch.Tensor | None],
    grads: typing.Sequence[torch.Tensor | None],
    inputs: typing.Sequence[torch.Tensor | None],
    *,
    create_graph: bool = True,
) -> list[torch.Tensor | None]:
    """Return the gradient of each of ``inputs``, None for one that has none."""
    pairs = [
        (output, grad)
        for output, grad in zip(outputs, grads, strict=True)
        if grad is not None and output is not None and output.requires_grad
    ]
    leaves = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    if not pairs or not leaves:
        return [None] * len(inputs)
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            leaves,
            [grad for _, grad in pairs],
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    return [
        next(found) if tensor is not None and tensor.requires_grad else None for tensor in inputs
    ]


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous tensor with the shape and dtype of ``tensor``."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def contiguous(*tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Return contiguous tensors; None stays None."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _define(
    name: str, function: Callable[..., tuple], inputs: str, outputs: int
) -> torch.library.CustomOpDef:
    schema = f"({inputs}) -> ({', '.join(['Tensor'] * outputs)})"
    return torch.library.custom_op(
        f"megalodon_tasks::{name}", function, mutates_args=(), schema=schema
    )
