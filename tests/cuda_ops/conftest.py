"""The device of kernel tests, and Triton's interpreter patched for them."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def loop_bounds() -> Iterator[None]:
    """Loop bounds are arrays of one number, which Triton 3.6 converts as NumPy 2.4 forbids."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_convert(tensor: type, scope: object) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_and_convert)
        yield


@pytest.fixture(autouse=True)
def _backend_under_test(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip ``native`` where its kernels cannot be compiled; give ``triton`` tiles that short calls fill.

    Calls of 4,096 steps or more have the tiles that users get.

    The modules are imported here because they import triton, and ``pytest_configure`` has to ask for
    its interpreter before.
    """
    call = getattr(request.node, "callspec", None)
    params = {} if call is None else call.params
    backend = params.get("backend")
    if backend == "native":
        from megalodon_tasks.cuda_ops import native

        reason = native.why_not(native.CEMA)
        if reason is not None:
            pytest.skip(reason)
    short = params.get("length", 0) < 4096
    if (backend == "triton" and short) or "small_tiles" in request.keywords:
        from megalodon_tasks.cuda_ops.complex_ema import triton_launch as ema
        from megalodon_tasks.cuda_ops.norms import triton_launch as norms

        # Segments of two blocks; blocks of eight steps of four features, two to a tile of the scan over
        # blocks, several to a program that sums over steps.
        monkeypatch.setattr(ema, "LEAST_SEGMENT", 32)
        for name, value in {"WIDTH": 4, "ELEMENTS": 32, "SCAN_ELEMENTS": 4, "PROGRAMS": 4}.items():
            monkeypatch.setattr(norms, name, value)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """The CPU, where kernels are interpreted, and the GPU, where they are compiled."""
    return request.param
