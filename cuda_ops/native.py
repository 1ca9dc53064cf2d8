"""C kernels for the CPU: compiled on first use, stored in a cache, loaded with ctypes.

A kernel is a C file beside the op that uses it.  It is compiled for the CPU that it runs on, as
PyTorch's and Triton's own compilers do, by the C compiler of the machine: ``$CC``, ``cc``, ``gcc`` or
``clang``.  Its loops share PyTorch's threads: the OpenMP functions are not linked but found in the
runtime that PyTorch has loaded, so that no second pool of threads competes for the cores.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

CEMA = Path(__file__).with_name("complex_ema") / "native_kernels.c"

CACHE_VARIABLE = "MEGALODON_CACHE_DIR"

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fPIC")
# Tried in turn: a compiler whose OpenMP is not that of PyTorch gives kernels of one thread.
_THREADING = (("-fopenmp",), ())


class NoKernels(RuntimeError):
    """The kernels cannot be compiled or loaded on this machine; the message says why."""


def cache_folder() -> Path:
    """Return where compiled kernels are stored: ``$MEGALODON_CACHE_DIR``, or in the user's cache."""
    folder = os.environ.get(CACHE_VARIABLE)
    if folder:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "megalodon_tasks"


@functools.cache
def load(source: Path) -> ctypes.CDLL:
    """Compile the C file ``source`` if needed and load it.  Raises :class:`NoKernels`."""
    compiler = _compiler()
    errors = []
    for threading in _THREADING:
        try:
            return ctypes.CDLL(str(_compiled(source, compiler, (*_FLAGS, *threading))))
        except OSError as error:
            errors.append(str(error))
    raise NoKernels(f"{source.name} cannot be compiled or loaded: {errors[-1]}")


@functools.cache
def why_not(source: Path) -> str | None:
    """Return why ``source`` cannot be used on this machine, or None if it can."""
    try:
        load(source)
    except NoKernels as error:
        return str(error)
    return None


def _compiler() -> str:
    names = (os.environ["CC"],) if os.environ.get("CC") else _COMPILERS
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    raise NoKernels(
        f"no C compiler was found (looked for {', '.join(names)}); install one or set CC"
    )


def _compiled(source: Path, compiler: str, flags: tuple[str, ...]) -> Path:
    """Return the shared library of ``source``, from the cache or compiled now.  Raises OSError."""
    # What the compiler defines names its version and the instructions of this CPU: a home folder may
    # be shared by machines that differ.
    defined = _run(compiler, *flags, "-dM", "-E", "-x", "c", os.devnull)
    key = hashlib.sha256("\0".join((source.read_text(), *flags, defined)).encode()).hexdigest()[:16]
    library = cache_folder() / f"{source.stem}-{key}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        compiled, linked = Path(folder, "kernels.o"), Path(folder, "kernels.so")
        _run(compiler, *flags, "-c", str(source), "-o", str(compiled))
        _run(compiler, "-shared", str(compiled), "-o", str(linked), "-lm")
        os.replace(linked, library)
    return library


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
