"""Compiling the C kernels: the cache and its faults, compilers and machines of all kinds."""

import ctypes
import os
import pwd
import signal
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from megalodon_tasks.cuda_ops import cema, native
from tests.cuda_ops.cases import Cema

COMPILER = native.why_not(native.CEMA)
needs_a_compiler = pytest.mark.skipif(COMPILER is not None, reason=str(COMPILER))
ANSWER = "int answer(void) { return 42; }"


def forget():
    """As if the process had just started."""
    native.load.cache_clear()
    native.why_not.cache_clear()
    native.warned_of.clear()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache on disk, and none in memory."""
    monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    forget()
    yield tmp_path / "cache"
    forget()


@pytest.fixture
def source(tmp_path):
    return written(tmp_path, ANSWER)


def written(folder, text):
    source = folder / "kernels.c"
    source.write_text(text)
    return source


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def fake_compiler(monkeypatch, tmp_path):
    """Make ``CC`` a script; ``$compiler`` is the real compiler, ``$log`` a file."""
    real = native._compiler()[0]

    def make(text):
        path = script(tmp_path / "fake", f"compiler={real}\nlog={tmp_path / 'log'}\n{text}")
        monkeypatch.setenv("CC", str(path))
        return path

    return make


def answer(source):
    """Load it without any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return native.load(source).answer()


@needs_a_compiler
def test_a_second_process_finds_what_the_first_compiled(source, cache):
    assert answer(source) == 42
    (library,) = cache.iterdir()
    before = library.stat().st_mtime_ns
    forget()
    assert answer(source) == 42
    assert [file.stat().st_mtime_ns for file in cache.iterdir()] == [before]


@needs_a_compiler
def test_changed_code_is_compiled_again(tmp_path, cache):
    native.load(written(tmp_path, "int answer(void) { return 1; }"))
    forget()
    assert answer(written(tmp_path, "int answer(void) { return 2; }")) == 2
    assert len(list(cache.iterdir())) == 2


def other_library(folder):
    """The bytes of a library that answers 7."""
    compiled = folder / "other.so"
    other = folder / "other.c"
    other.write_text("int answer(void) { return 7; }")
    compiler = native._compiler()[0]
    subprocess.run([compiler, "-shared", "-fPIC", str(other), "-o", str(compiled)], check=True)
    return compiled.read_bytes()


DAMAGES = {
    "cut to half": lambda content, folder: content[: len(content) // 2],
    "cut by one byte": lambda content, folder: content[:-1],
    "cut to its first page": lambda content, folder: content[:4096],
    "empty": lambda content, folder: b"",
    "zeroed": lambda content, folder: bytes(len(content)),
    "zeroed after the header": lambda content, folder: content[:64] + bytes(len(content) - 64),
    "text": lambda content, folder: b"not a library\n",
    "foreign": lambda content, folder: other_library(folder),
    "one bit": lambda content, folder: content[:3000] + bytes([content[3000] ^ 1]) + content[3001:],
}


@needs_a_compiler
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_compiled_again_and_never_loaded(damage, source, cache, tmp_path):
    assert answer(source) == 42
    (library,) = cache.iterdir()
    content = library.read_bytes()
    library.unlink()  # this process has loaded the old file
    library.write_bytes(DAMAGES[damage](content, tmp_path))
    forget()
    assert answer(source) == 42
    (library,) = cache.iterdir()
    assert library.read_bytes() == content


@needs_a_compiler
def test_a_broken_library_in_a_cache_that_is_read_only_is_not_loaded(source, cache, monkeypatch):
    assert answer(source) == 42
    (library,) = cache.iterdir()
    library.unlink()  # this process has loaded the old file
    library.write_bytes(b"")
    forget()

    def refuse(self, missing_ok=False):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.warns(RuntimeWarning, match="Permission denied"):
        assert native.load(source).answer() == 42


def in_a_process(source):
    """Load it in a process that starts fast, because it does not import torch."""
    code = (
        "import runpy, sys; from pathlib import Path;"
        "print(runpy.run_path(sys.argv[1])['load'](Path(sys.argv[2])).answer())"
    )
    command = [sys.executable, "-c", code, native.__file__, str(source)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@needs_a_compiler
def test_several_processes_at_once(source, cache):
    runs = [in_a_process(source) for _ in range(6)]
    assert [run.communicate()[0] for run in runs] == ["42\n"] * 6
    (library,) = cache.iterdir()
    assert answer(source) == 42


@needs_a_compiler
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("int answer(void) { nonsense(; }", "(?s)kernels.c cannot be compiled .*nonsense"),
        ('#include "missing.h"', "missing.h"),
        ("int other(void); int answer(void) { return other(); }", "undefined symbol"),
    ],
)
def test_what_does_not_compile_leaves_nothing_and_says_why(text, why, tmp_path, cache):
    with pytest.raises(native.NoKernels, match=why):
        native.load(written(tmp_path, text))
    assert not any((tmp_path / "temporary").iterdir())
    assert not list(cache.glob("partial-*"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "looked for cc, gcc, clang"),
        ("", "looked for cc, gcc, clang"),
        ("icx", "looked for icx"),
        ("ccache icx -m64", "looked for ccache"),
        ("gcc '-m64", "is no command: No closing quotation"),
    ],
)
def test_without_a_compiler_it_says_what_was_looked_for(given, message, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if given is not None:
        monkeypatch.setenv("CC", given)
    assert message in native.why_not(native.CEMA)


@needs_a_compiler
@pytest.mark.parametrize(
    "command", ["ccache {} -DCODE=42", "ccache  {}  '-DTEXT=\"a b\"'", "{} -g", " {} "]
)
def test_cc_may_be_a_command(command, source, cache, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin" / "ccache", f'echo "$@" >> {tmp_path / "log"}; exec "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CC", command.format(native._compiler()[0]))
    assert answer(source) == 42
    assert ("ccache" in command) == (tmp_path / "log").exists()


@needs_a_compiler
def test_a_compiler_in_a_folder_with_spaces(source, tmp_path, monkeypatch):
    (tmp_path / "my tools").mkdir()
    fake = script(tmp_path / "my tools" / "cc", f'exec {native._compiler()[0]} "$@"')
    monkeypatch.setenv("CC", str(fake))
    assert answer(source) == 42


@needs_a_compiler
@pytest.mark.parametrize(
    "text",
    [
        r"printf '\377\376 caf\351\n' >&2; exec $compiler \"$@\"",
        r"printf '/* \377 */\n'; exec $compiler \"$@\"",
    ],
)
def test_a_compiler_that_prints_bytes_that_are_not_utf_8(text, source, fake_compiler):
    fake_compiler(text.replace('\\"', '"'))
    assert answer(source) == 42


FAILING = {
    "bytes that are not UTF-8": (r"printf '\377\376 caf\351\n' >&2; exit 1", "caf"),
    "a crash": ("kill -SEGV $$", "ended with -11"),
    "success without a result": ("exit 0", "made no library"),
    "no error text": ("exit 4", "ended with 4"),
    "a link that fails": (
        'case "$*" in *-shared*) echo no linker >&2; exit 1;; esac; exec $compiler "$@"',
        "no linker",
    ),
    "a result that is no library": (
        'case "$*" in *-shared*) for name; do case $name in *.so) echo no > $name;; esac; done; exit;; '
        'esac; exec $compiler "$@"',
        "file too short",
    ),
}


@needs_a_compiler
@pytest.mark.parametrize("fault", FAILING)
def test_a_compiler_that_fails_is_a_reason(fault, source, fake_compiler, tmp_path):
    text, message = FAILING[fault]
    fake_compiler(text)
    assert message in native.why_not(source)
    assert not any((tmp_path / "temporary").iterdir())


@needs_a_compiler
@pytest.mark.parametrize(
    "text",
    [
        "sleep 60",
        "sleep 60 & sleep 60",
        'case "$*" in *-shared*) sleep 60;; esac; exec $compiler "$@"',
        "trap '' TERM INT; sleep 60",
    ],
)
def test_a_compiler_that_hangs_is_stopped(text, source, fake_compiler, monkeypatch, cache):
    fake_compiler(text)
    monkeypatch.setattr(native, "TIME_LIMIT", 0.4)
    before = time.monotonic()
    assert "took more than 0.4 seconds; set CC" in native.why_not(source)
    assert time.monotonic() - before < 20
    assert not cache.exists()


@needs_a_compiler
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_compilation_leaves_nothing_in_the_cache(
    how, source, cache, tmp_path, fake_compiler
):
    started = tmp_path / "log"
    fake_compiler('case "$*" in *-shared*) touch $log; exec sleep 2;; esac; exec $compiler "$@"')
    run = in_a_process(source)
    while not started.exists() and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(how)
    run.communicate()
    assert run.returncode != 0
    assert not cache.exists()
    if how == signal.SIGINT:
        assert not any((tmp_path / "temporary").iterdir())


REFUSING = {
    "-march=native": ('case "$*" in *-march*) echo bad march >&2; exit 1;; esac', "instructions"),
    "-march=native of the assembler": (
        'case "$*" in *-march*" -c "*) echo bad march >&2; exit 1;; esac',
        "instructions of this CPU",
    ),
    "-fopenmp": ('case "$*" in *-fopenmp*) echo bad march >&2; exit 1;; esac', "threads"),
    "any": (
        'case "$*" in *-fopenmp*|*-march*) echo bad march >&2; exit 1;; esac',
        "threads .* and",
    ),
}


@needs_a_compiler
@pytest.mark.parametrize("flag", REFUSING)
def test_a_refused_flag_is_left_out_with_a_warning(flag, source, fake_compiler):
    text, lost = REFUSING[flag]
    fake_compiler(f'{text}; exec $compiler "$@"')
    with pytest.warns(RuntimeWarning, match=f"(?s)run without .*{lost}.*bad march"):
        assert native.load(source).answer() == 42
    native.load.cache_clear()
    assert answer(source) == 42


@needs_a_compiler
@pytest.mark.parametrize("folder", ["relative", ".", "a/../b", "~/cache", "with space", "a[b]*"])
def test_any_name_of_the_cache_folder(folder, source, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(native.CACHE_VARIABLE, folder)
    assert answer(source) == 42
    assert len(list(native.cache_folder().glob("kernels-*.so"))) == 1
    assert (tmp_path / "home").exists() == folder.startswith("~")
    assert not Path("~").exists()


@needs_a_compiler
@pytest.mark.parametrize("cache_home", [None, "~/own"])
def test_the_users_cache_is_the_default(cache_home, source, tmp_path, monkeypatch):
    monkeypatch.delenv(native.CACHE_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if cache_home:
        monkeypatch.setenv("XDG_CACHE_HOME", cache_home)
    assert answer(source) == 42
    folder = tmp_path / "home" / (cache_home or "~/.cache")[2:] / "megalodon_tasks"
    assert len(list(folder.iterdir())) == 1


def no_user(monkeypatch, tmp_path):
    def getpwuid(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    for name in (native.CACHE_VARIABLE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)


def no_user_but_a_folder_below_home(monkeypatch, tmp_path):
    no_user(monkeypatch, tmp_path)
    monkeypatch.setenv(native.CACHE_VARIABLE, "~/cache")


def no_folder(monkeypatch, tmp_path):
    monkeypatch.setenv(native.CACHE_VARIABLE, "/dev/null/cache")


def a_file(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path / "file"))


def read_only(monkeypatch, tmp_path):
    monkeypatch.setenv(native.CACHE_VARIABLE, "/proc")


def no_execution(monkeypatch, tmp_path):
    class Library(ctypes.CDLL):
        def __init__(self, name):
            if name.startswith(str(tmp_path / "cache")):
                raise OSError(f"{name}: failed to map segment from shared object")
            super().__init__(name)

    monkeypatch.setattr(native.ctypes, "CDLL", Library)


def a_full_disk(monkeypatch, tmp_path):
    def fsync(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(native.os, "fsync", fsync)


UNUSABLE = (
    *(no_user, no_user_but_a_folder_below_home, no_folder, a_file, read_only),
    *(no_execution, a_full_disk),
)


@needs_a_compiler
@pytest.mark.parametrize("fault", UNUSABLE)
def test_a_cache_that_cannot_be_used_costs_one_warning(fault, source, tmp_path, monkeypatch, cache):
    fault(monkeypatch, tmp_path)
    with pytest.warns(RuntimeWarning, match="cannot be stored .*set MEGALODON_CACHE_DIR"):
        assert native.load(source).answer() == 42
    native.load.cache_clear()
    assert answer(source) == 42
    assert not list(cache.glob("partial-*"))
    assert not any((tmp_path / "temporary").iterdir())


def test_without_a_temporary_folder_it_says_what_to_do(source, tmp_path, monkeypatch):
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert "set TMPDIR" in (native.why_not(source) or "set TMPDIR")


NO_KERNELS = {
    "no compiler": {"PATH": "/nonexistent", "CC": ""},
    "a compiler that fails": {"CC": "false"},
    "a compiler that is none": {"CC": "true"},
}


@pytest.mark.parametrize("fault", NO_KERNELS)
def test_the_op_falls_back_to_torch_with_one_warning(fault, monkeypatch):
    for name, value in NO_KERNELS[fault].items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MEGALODON_OPS_BACKEND", raising=False)
    leaves = {name: leaf.float() for name, leaf in Cema().leaves().items()}
    truth = cema(**leaves, backend="torch")[0]
    with pytest.warns(RuntimeWarning, match="Ops run on backend torch.*C compiler"):
        assert torch.equal(cema(**leaves)[0], truth)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(cema(**leaves)[0], truth)
        cema(**Cema().leaves())  # float64 never uses the kernels
        cema(**leaves, backend="torch")
