"""Compiling the C kernels: the cache, machines without a compiler, code that does not compile."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megalodon_tasks.cuda_ops import native
from tests.cuda_ops.cases import Cema, assert_equal_calls, evaluate

COMPILER = native.why_not(native.CEMA)
needs_a_compiler = pytest.mark.skipif(COMPILER is not None, reason=str(COMPILER))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache on disk, and none in memory."""
    monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path / "cache"))
    for function in (native.load, native.why_not):
        function.cache_clear()
    yield tmp_path / "cache"
    for function in (native.load, native.why_not):
        function.cache_clear()


def written(folder, text):
    source = folder / "kernels.c"
    source.write_text(text)
    return source


@needs_a_compiler
def test_a_second_process_finds_what_the_first_compiled(tmp_path, cache, monkeypatch):
    source = written(tmp_path, "int answer(void) { return 42; }")
    assert native.load(source).answer() == 42
    (library,) = cache.iterdir()
    before = library.stat().st_mtime_ns
    native.load.cache_clear()
    assert native.load(source).answer() == 42
    assert [file.stat().st_mtime_ns for file in cache.iterdir()] == [before]


@needs_a_compiler
def test_changed_code_is_compiled_again(tmp_path, cache):
    native.load(written(tmp_path, "int answer(void) { return 1; }"))
    native.load.cache_clear()
    assert native.load(written(tmp_path, "int answer(void) { return 2; }")).answer() == 2
    assert len(list(cache.iterdir())) == 2


@needs_a_compiler
def test_what_does_not_compile_leaves_nothing_and_says_why(tmp_path, cache):
    with pytest.raises(native.NoKernels, match=r"(?s)kernels.c cannot be compiled .*nonsense"):
        native.load(written(tmp_path, "int answer(void) { nonsense(; }"))
    assert not any(cache.iterdir())


def test_without_a_compiler_it_says_what_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "looked for cc, gcc, clang" in native.why_not(native.CEMA)
    native.why_not.cache_clear()
    monkeypatch.setenv("CC", "icx")
    assert "looked for icx" in native.why_not(native.CEMA)


@needs_a_compiler
def test_a_cache_that_cannot_be_written_is_a_reason(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(native.NoKernels, match="cannot be compiled or loaded"):
        native.load(written(tmp_path, "int answer(void) { return 42; }"))


def test_a_machine_without_a_compiler_still_has_the_op(tmp_path):
    code = (
        "from megalodon_tasks.cuda_ops import cema; from tests.cuda_ops.cases import Cema;"
        "print(tuple(cema(**{n: t.float() for n, t in Cema().leaves().items()})[0].shape))"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "CC": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout == "(2, 21, 3)\n"


@needs_a_compiler
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_number_of_threads_changes_nothing_but_the_order_of_sums(bidirectional):
    case = Cema(5, 700, "right", not bidirectional, dim=37, bidirectional=bidirectional)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(evaluate(case, "native"))
    torch.set_num_threads(before)
    assert torch.equal(found[0][0]["y"], found[1][0]["y"])
    assert torch.equal(found[0][1]["x"], found[1][1]["x"])
    assert_equal_calls(*found, 1e-5, 1e-5)


@needs_a_compiler
def test_large_outputs_are_written_around_the_caches(monkeypatch):
    module = sys.modules["megalodon_tasks.cuda_ops.complex_ema.native_op"]
    case = Cema(2, 300, "right", True, dim=32)
    usual = evaluate(case, "native")
    monkeypatch.setattr(module, "_LARGE", 0)
    assert_equal_calls(evaluate(case, "native"), usual, 0.0, 0.0)


@needs_a_compiler
def test_the_structure_of_a_call_is_that_of_the_c_file():
    import re

    from megalodon_tasks.cuda_ops.complex_ema.native_op import _Call

    body = re.search(r"struct call \{(.*?)\n\};", native.CEMA.read_text(), re.DOTALL)[1]
    body = re.sub(r"/\*.*?\*/", "", body)
    names = re.findall(r"\*?(\w+)[,;]", body)
    assert names == [name for name, _ in _Call._fields_]
    assert ctypes.sizeof(_Call) == 8 * len(names)
    assert isinstance(native.CEMA, Path)
