"""The table of backends in cuda_ops/README.md is true."""

import re
from pathlib import Path

import pytest
import torch

from megalodon_tasks.cuda_ops import (
    BackendUnavailable,
    ChunkAttentionState,
    TimestepNormState,
    cema,
    chunk_attention,
    cross_attention,
    dispatch,
    rms_norm,
    sequence_norm,
    timestep_norm,
)

ROOT = Path(__file__).resolve().parents[2] / "cuda_ops"
README = (ROOT / "README.md").read_text(encoding="utf-8")
DTYPES = ("float64", "float32", "bfloat16", "float16")
FOLDERS = {
    "cema": "complex_ema",
    "timestep_norm": "norms/timestep",
    "sequence_norm": "norms/sequence",
    "rms_norm": "norms/rms",
    "chunk_attention": "attention",
    "cross_attention": "attention",
}


def rows():
    """(op, backend) -> the other cells of the table of backends."""
    found = {}
    for line in README.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and cells[0].startswith("`"):
            op, backend = (cell.strip("`") for cell in cells[:2])
            found[op, backend] = dict(
                zip(("forward", "backward", "state", "dtypes", "devices"), cells[2:], strict=True)
            )
    return found


ROWS = rows()


def run(op, backend, dtype):
    """The output, the input and what a gradient can reach of the state, of a tiny call."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4).to(dtype).requires_grad_()
    if op == "cema":
        shapes = (4, 3, 1), (4, 3, 1), (4, 1, 1), (4, 3, 2), (4, 1)
        state = torch.zeros(2, 4, 3, dtype=torch.complex64, requires_grad=True)
        y, _ = cema(x, *map(torch.randn, shapes), state=state, backend=backend)
        return y, x, state
    if op == "timestep_norm":
        state = TimestepNormState(
            torch.tensor([3, 4]), torch.randn(2, 2, requires_grad=True), torch.ones(2, 2)
        )
        weights = torch.ones(4, dtype=dtype), torch.zeros(4, dtype=dtype)
        return timestep_norm(x, *weights, 2, state=state, backend=backend)[0], x, state.mean
    if op == "sequence_norm":
        weights = torch.ones(4, dtype=dtype), torch.zeros(4, dtype=dtype)
        return sequence_norm(x, *weights, 2, backend=backend), x, None
    if op == "rms_norm":
        return rms_norm(x, torch.ones(4, dtype=dtype), backend=backend), x, None
    x = x.detach()[:, :, None].requires_grad_()
    if op == "cross_attention":
        return cross_attention(x[:, :3], x, x, backend=backend), x, None
    key = torch.randn(2, 1, 1, 4).to(dtype).requires_grad_()
    state = ChunkAttentionState(key, torch.ones_like(key))
    sizes = {"chunk_size": 3, "causal": True}
    return chunk_attention(x, x, x, **sizes, state=state, backend=backend)[0], x, key


def test_it_has_a_row_for_every_backend_and_no_other():
    assert list(ROWS) == [(op, name) for op, table in dispatch.BACKENDS.items() for name in table]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "backend"), list(ROWS))
def test_dtypes_and_gradients_are_as_the_table_says(op, backend, dtype):
    row = ROWS[op, backend]
    if dtype not in row["dtypes"].split(", "):
        with pytest.raises(BackendUnavailable, match=dtype):
            run(op, backend, getattr(torch, dtype))
        return
    y, x, state = run(op, backend, getattr(torch, dtype))
    assert y.dtype == x.dtype
    assert row["state"] == ("no state" if state is None else "yes")
    inputs = [x] if state is None else [x, state]
    grads = torch.autograd.grad(y.float().square().sum(), inputs, create_graph=True)
    assert all(grad.abs().sum() > 0 for grad in grads)
    by_hand = row["backward"].startswith("by hand") and backend != "torch"
    if by_hand and dtype == row["dtypes"].split(", ")[0]:
        with pytest.raises(RuntimeError, match="no second derivative"):
            grads[0].float().sum().backward()


@pytest.mark.parametrize(("op", "backend"), list(ROWS))
def test_devices_are_as_the_table_says(monkeypatch, op, backend):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    served = {
        "any": ("cpu", "cuda", "mps"),
        "CUDA; CPU interpreted": ("cuda",),
        "CPU, with a C compiler": ("cpu",),
    }[ROWS[op, backend]["devices"]]
    for device in ("cpu", "cuda", "mps"):
        if device in served:
            assert callable(dispatch.pick(op, backend, torch.device(device)))
        else:
            with pytest.raises(BackendUnavailable):
                dispatch.pick(op, backend, torch.device(device))


def numbered(page):
    """The numbers of the equations that a page sets, at the end of a line or in a tag."""
    found = re.findall(r"\\tag\{(\d+)\}|^    .* \((\d+)\)$", page, re.MULTILINE)
    return {int(tag or number) for tag, number in found}


def quoted(cells):
    """The equations that cells of the table refer to, ranges in full."""
    text = " ".join(cells)
    numbers = {int(number) for number in re.findall(r"\((\d+)\)", text)}
    for first, last in re.findall(r"\((\d+)\) to \((\d+)\)", text):
        numbers |= set(range(int(first), int(last) + 1))
    return numbers


@pytest.mark.parametrize("op", list(dispatch.BACKENDS))
def test_each_page_derives_what_the_table_quotes(op):
    page = (ROOT / FOLDERS[op] / "README.md").read_text(encoding="utf-8")
    equations = numbered(page)
    assert equations == set(range(1, max(equations) + 1)), "numbers without a gap"
    for (of, backend), row in ROWS.items():
        if of == op:
            assert f"`{backend}`" in page or f"`{backend}.py`" in page
            assert quoted(row.values()) <= equations
    headings = " ".join(re.findall(r"^## (.*)$", page, re.MULTILINE)).lower()
    assert all(part in headings for part in ("forward", "backward"))
    if "triton" not in dispatch.BACKENDS[op]:
        return
    assert "triton" in headings
    kernels = (ROOT / FOLDERS[op] / "triton_kernels.py").read_text(encoding="utf-8")
    for kernel in re.findall(r"^def (\w+_kernel)\(", kernels, re.MULTILINE):
        assert f"`{kernel}`" in page, f"{kernel} is in no table"


def test_environment_variables_are_in_the_table():
    text = "".join(file.read_text(encoding="utf-8") for file in sorted(ROOT.rglob("*.py")))
    read = set(re.findall(r'environ\b[^\n"]*"([A-Z_]+)"', text))
    assert read, "no file reads the environment any more"
    table = set(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE))
    assert read | {dispatch.ENV_VARIABLE} <= table
