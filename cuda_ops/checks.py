"""The one form of argument errors of the op library: op, tensor, shape it got, shape it wanted."""

import torch

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_shape(op: str, name: str, tensor: torch.Tensor, expected: tuple, layout: str) -> None:
    """Raise ``ValueError`` unless ``tensor`` has the shape ``expected`` (None matches any size).

    ``layout`` names the axes for the message, for example ``"(batch, length, dim)"``.
    """
    shape = tuple(tensor.shape)
    fits = len(shape) == len(expected) and all(
        want is None or got == want for got, want in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(f"{op}: {name} has shape {shape}, wanted ({wanted}) = {layout}")


def check_float(op: str, name: str, tensor: torch.Tensor) -> None:
    """Raise ``ValueError`` unless ``tensor`` is of a real floating dtype."""
    if tensor.dtype not in FLOATS:
        raise ValueError(
            f"{op}: {name} has dtype {tensor.dtype}, wanted one of "
            f"{', '.join(str(dtype).removeprefix('torch.') for dtype in FLOATS)}"
        )


def check_same_device(op: str, **tensors: torch.Tensor | None) -> None:
    """Raise ``ValueError`` unless all given tensors are on one device (None is ignored)."""
    first: tuple[str, torch.device] | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first = (name, tensor.device)
        elif tensor.device != first[1]:
            raise ValueError(
                f"{op}: {name} is on {tensor.device} but {first[0]} on {first[1]}; "
                "move them to one device"
            )


def check_padding_mask(op: str, mask: torch.Tensor | None, batch: int, length: int) -> None:
    """Raise ``ValueError`` unless ``mask`` is None or a bool tensor of shape (batch, length)."""
    if mask is None:
        return
    check_shape(op, "padding_mask", mask, (batch, length), "(batch, length)")
    if mask.dtype != torch.bool:
        raise ValueError(
            f"{op}: padding_mask has dtype {mask.dtype}, wanted bool with True at padding; "
            "a mask of ones at real tokens is padding_mask = (mask == 0)"
        )


def check_groups(op: str, dim: int, num_groups: int) -> None:
    """Raise ``ValueError`` unless ``num_groups`` is a positive divisor of ``dim``."""
    if num_groups < 1 or dim % num_groups:
        raise ValueError(
            f"{op}: num_groups={num_groups} does not divide dim {dim}; choose a divisor of {dim}"
        )


def check_norm(
    op: str,
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    num_groups: int,
    padding_mask: torch.Tensor | None,
) -> None:
    """Raise ``ValueError`` unless the arguments that both norms over time share fit each other."""
    check_shape(op, "x", x, (None, None, None), "(batch, length, dim)")
    batch, length, dim = x.shape
    if length < 1:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, wanted at least one step of time")
    check_groups(op, dim, num_groups)
    tensors = {"x": x, "scale": scale, "bias": bias}
    for name, tensor in tensors.items():
        check_float(op, name, tensor)
    check_shape(op, "scale", scale, (dim,), "(dim,)")
    check_shape(op, "bias", bias, (dim,), "(dim,)")
    check_padding_mask(op, padding_mask, batch, length)
    check_same_device(op, **tensors, padding_mask=padding_mask)
