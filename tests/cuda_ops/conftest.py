"""The device of kernel tests, and Triton's interpreter mended for them."""

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

    def patch_and_mend(tensor: type, scope: object) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_and_mend)
        yield


@pytest.fixture(autouse=True)
def _needs_a_compiler(request: pytest.FixtureRequest) -> None:
    """Tests of backend ``native`` are skipped where its kernels cannot be compiled."""
    call = getattr(request.node, "callspec", None)
    if call is not None and call.params.get("backend") == "native":
        # Not at the top: it imports triton, before ``pytest_configure`` asks for the interpreter.
        from megalodon_tasks.cuda_ops import native

        reason = native.why_not(native.CEMA)
        if reason is not None:
            pytest.skip(reason)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """The CPU, where kernels are interpreted, and the GPU, where they are compiled."""
    return request.param
