"""Checks of the arguments of ops.  Every error names the op, the tensor, its value and what to pass."""

import torch

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_shape(op: str, name: str, tensor: torch.Tensor, expected: tuple, layout: str) -> None:
    """Raise ``ValueError`` unless ``tensor`` has the shape ``expected`` (None matches any size).

    ``layout`` names the axes for the message, for example ``"(batch, length, dim)"``.
    """
    shape = tuple(tensor.shape)
    fits = len(shape) == len(expected) and all(
        size is None or actual == size for actual, size in zip(shape, expected, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(f"{op}: {name} has shape {shape}, expected ({sizes}) = {layout}")


def check_float(op: str, name: str, tensor: torch.Tensor) -> None:
    """Raise ``ValueError`` unless ``tensor`` has a real floating dtype."""
    if tensor.dtype not in FLOATS:
        raise ValueError(
            f"{op}: {name} has dtype {tensor.dtype}, expected one of "
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
                f"{op}: {name} is on {tensor.device} but {first[0]} is on {first[1]}; "
                "move them to one device"
            )


def check_padding_mask(op: str, mask: torch.Tensor | None, batch: int, length: int) -> None:
    """Raise ``ValueError`` unless ``mask`` is None or a bool tensor of shape (batch, length)."""
    if mask is None:
        return
    check_shape(op, "padding_mask", mask, (batch, length), "(batch, length)")
    if mask.dtype != torch.bool:
        raise ValueError(
            f"{op}: padding_mask has dtype {mask.dtype}, expected bool with True at padding; "
            "a mask of ones at real tokens is padding_mask = (mask == 0)"
        )
