"""Which backend runs: argument, context, environment, device; and the errors of each."""

import subprocess
import sys

import pytest
import torch

from megalodon_tasks.cuda_ops import BackendUnavailable, cema, dispatch, use_backend
from megalodon_tasks.cuda_ops.dispatch import ENV_VARIABLE, pick
from tests.cuda_ops.cases import Cema

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_choice_from_outside(monkeypatch):
    monkeypatch.delenv(ENV_VARIABLE, raising=False)


def chosen(backend=None, device=CPU, dtype=torch.float32):
    function = pick("cema", backend, device, dtype)
    return next(
        name
        for name in ("reference", "torch", "native", "fft")
        if name_of(name) == function.__name__
    )


def name_of(backend):
    return dispatch.BACKENDS["cema"][backend].split(":")[1]


@pytest.fixture
def compiler(monkeypatch):
    """As if the kernels of backend ``native`` could be compiled here, or could not."""

    def say(reason):
        monkeypatch.setattr(dispatch.native, "why_not", lambda source: reason)

    say(None)
    return say


def test_default_on_a_cpu_is_native_where_the_op_has_it(compiler):
    assert chosen() == "native"
    assert pick("sequence_norm", None, CPU) is pick("sequence_norm", "native", CPU)
    assert pick("chunk_attention", None, CPU) is pick("chunk_attention", "torch", CPU)


def test_default_on_a_cpu_without_a_compiler_or_in_float64_is_torch(compiler):
    assert chosen(dtype=torch.float64) == "torch"
    compiler("no C compiler was found")
    dispatch.native.warned_of.clear()
    with pytest.warns(RuntimeWarning, match="on backend torch, .* because no C compiler was found"):
        assert chosen() == "torch"


@pytest.mark.parametrize(
    ("reason", "device", "dtype", "message"),
    [
        (None, "cuda", torch.float32, "run on a CPU, the tensors are on cuda"),
        (None, "cpu", torch.float64, "compute in float32, the tensors are float64"),
        ("no C compiler was found", "cpu", torch.float32, "no C compiler was found; usable"),
    ],
)
def test_native_that_cannot_run_says_why(compiler, reason, device, dtype, message):
    compiler(reason)
    with pytest.raises(BackendUnavailable, match=f"'native' cannot run: .*{message}"):
        chosen("native", torch.device(device), dtype)


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_default_without_kernels_for_the_device_is_torch(device):
    assert chosen(device=torch.device(device)) == "torch"


def test_rms_norm_is_fused_on_cuda_and_where_triton_is_named():
    fused = pick("rms_norm", "fused", CPU)
    assert pick("rms_norm", None, torch.device("cuda")) is fused
    assert pick("rms_norm", "triton", CPU) is fused
    assert pick("rms_norm", None, CPU) is pick("rms_norm", "torch", CPU)


def test_order_of_precedence(monkeypatch):
    monkeypatch.setenv(ENV_VARIABLE, "fft")
    assert chosen() == "fft"
    with use_backend("reference"):
        assert chosen() == "reference"
        assert chosen("torch") == "torch"
        with use_backend("torch"):
            assert chosen() == "torch"
        assert chosen() == "reference"
    assert chosen() == "fft"


def test_an_empty_variable_is_none(monkeypatch, compiler):
    monkeypatch.setenv(ENV_VARIABLE, "")
    assert chosen() == "native"


def test_use_backend_ends_with_an_error(compiler):
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError("inside")
    assert chosen() == "native"


@pytest.mark.parametrize("op", sorted(dispatch.BACKENDS))
def test_an_unknown_name_lists_the_choices(op):
    with pytest.raises(ValueError, match=rf"{op}: backend 'cuda' is not one of \[.*'torch'"):
        pick(op, "cuda", CPU)


def test_an_unknown_name_in_the_environment_is_an_error(monkeypatch):
    monkeypatch.setenv(ENV_VARIABLE, "fast")
    with pytest.raises(ValueError, match=f"backend 'fast' is not one of .*{ENV_VARIABLE}"):
        cema(**Cema().leaves())


@pytest.mark.parametrize("op", sorted(dispatch.BACKENDS))
def test_every_backend_of_the_table_exists(op, compiler):
    for backend in dispatch.BACKENDS[op]:
        if backend != "triton":
            assert callable(pick(op, backend, CPU))


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setitem(dispatch.BACKENDS["cema"], "triton", "cema.none:none")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="'triton' cannot run: the package triton is not"):
        pick("cema", "triton", CPU)
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(BackendUnavailable, match=r"set TRITON_INTERPRET=1 .*usable: .*'torch'"):
        pick("cema", "triton", CPU)


def test_a_default_that_cannot_run_falls_back(monkeypatch):
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    assert chosen(device=torch.device("cuda")) == "torch"


@pytest.mark.parametrize(
    ("dtype", "width", "chosen"),
    [
        (torch.float32, 512, "triton"),
        (torch.bfloat16, 512, "triton"),
        (torch.float32, 513, "torch"),
        (torch.float64, 64, "torch"),
    ],
)
def test_default_on_cuda_leaves_to_torch_what_the_kernels_cannot_hold(dtype, width, chosen):
    """No GPU is needed to choose for one."""
    function = pick("chunk_attention", None, torch.device("cuda"), dtype, key_width=width)
    assert function is pick("chunk_attention", chosen, torch.device("cuda"))


def test_too_wide_keys_are_an_error_where_triton_is_asked_for(monkeypatch):
    message = (
        r"hold 512 features per head of q and k, these have 600; usable: \['reference', 'torch'\]"
    )
    with pytest.raises(BackendUnavailable, match=message):
        pick("chunk_attention", "triton", torch.device("cuda"), key_width=600)
    monkeypatch.setenv(ENV_VARIABLE, "triton")
    with pytest.raises(BackendUnavailable, match=message):
        pick("chunk_attention", None, torch.device("cuda"), key_width=600)


def test_works_without_triton_and_fairseq():
    code = (
        "import sys; sys.modules |= {'triton': None, 'fairseq': None};"
        "from megalodon_tasks import cuda_ops; from tests.cuda_ops.cases import Cema;"
        "print(tuple(cuda_ops.cema(**Cema().leaves())[0].shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "(2, 21, 3)\n"
