"""C kernels for the CPU: compiled on first use, stored in a cache, loaded with ctypes.

A kernel is a C file beside the op that uses it; ``native.h`` has what they share.  It is compiled for
the CPU that it runs on, as PyTorch's and Triton's own compilers do, by the C compiler of the machine:
``$CC``, ``cc``, ``gcc`` or ``clang``.  Its loops share PyTorch's threads: the OpenMP functions are not
linked but found in the runtime that PyTorch has loaded, so that no second pool of threads competes for
the cores.

The name of a stored library holds the checksum of its bytes.  One that was cut, overwritten or replaced
is compiled again and never loaded.  Where nothing can be stored, or the cache holds no code that may
run (a ``noexec`` mount), each process compiles for itself in the system's temporary folder.
"""

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import warnings
from pathlib import Path

_HEADER = Path(__file__).with_name("native.h")
CEMA = _HEADER.with_name("complex_ema") / "native_kernels.c"
NORMS = _HEADER.with_name("norms") / "native_kernels.c"

CACHE_VARIABLE = "MEGALODON_CACHE_DIR"

# Seconds that one call of the compiler may take; the kernels need one or two.
TIME_LIMIT = 60.0

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = (
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-std=gnu11",
    "-fPIC",
    f"-I{_HEADER.parent}",
)
# Tried in turn, with what is lost.  A compiler whose OpenMP is not that of PyTorch gives one thread.
_VARIANTS = (
    (("-march=native", "-fopenmp"), "nothing"),
    (("-fopenmp",), "the instructions of this CPU (-march=native)"),
    (("-march=native",), "threads (-fopenmp)"),
    ((), "threads (-fopenmp) and the instructions of this CPU (-march=native)"),
)


# Subjects of warnings that this process has given.
warned_of: set[str] = set()


class NoKernels(RuntimeError):
    """The kernels cannot be compiled or loaded on this machine; the message says why."""


class _Refused(NoKernels):
    """The compiler refused these flags, or the library that it made cannot be loaded."""


def cache_folder() -> Path:
    """Return where compiled kernels are stored: ``$MEGALODON_CACHE_DIR``, or in the user's cache.

    Raises ``RuntimeError`` if that is below a home that the user does not have.
    """
    folder = os.environ.get(CACHE_VARIABLE)
    if folder:
        return Path(folder).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return cache.expanduser().absolute() / "megalodon_tasks"


@functools.cache
def load(source: Path) -> ctypes.CDLL:
    """Compile the C file ``source`` if needed and load it.  Raises :class:`NoKernels`."""
    compiler = _compiler()
    refusals = []
    for flags, lost in _VARIANTS:
        try:
            library = _load(source, compiler, (*_FLAGS, *flags))
        except _Refused as refusal:
            refusals.append(str(refusal))
            continue
        if refusals:
            warn_once(
                "flags",
                f"The C kernels run without {lost}, so that they are slower, because: {refusals[0]}. "
                "Set CC to a compiler that takes these flags",
            )
        return library
    raise NoKernels(
        f"{source.name} cannot be compiled or loaded: {refusals[-1]}. Set CC to another C compiler"
    )


@functools.cache
def why_not(source: Path) -> str | None:
    """Return why ``source`` cannot be used on this machine, or None if it can."""
    try:
        load(source)
    except NoKernels as error:
        return str(error)
    return None


def warn_once(subject: str, text: str) -> None:
    """Warn with ``text``, unless this process has warned of ``subject`` before."""
    if subject not in warned_of:
        warned_of.add(subject)
        warnings.warn(text, RuntimeWarning, stacklevel=2)


def _compiler() -> list[str]:
    """Return the words of the command that compiles, the first of them a path."""
    given = os.environ.get("CC", "").strip()
    try:
        # A path may hold spaces; so may arguments of a command, as in CC="ccache gcc -m64".
        words = [given] if shutil.which(given) else shlex.split(given)
    except ValueError as error:
        raise NoKernels(f"CC={given!r} is no command: {error}; set CC to a C compiler") from None
    commands = [words] if words else [[name] for name in _COMPILERS]
    for name, *arguments in commands:
        path = shutil.which(name)
        if path:
            return [path, *arguments]
    names = ", ".join(command[0] for command in commands)
    raise NoKernels(f"no C compiler was found (looked for {names}); install one or set CC")


def _load(source: Path, compiler: list[str], flags: tuple[str, ...]) -> ctypes.CDLL:
    """Load the library of ``source`` from the cache, or else compile, store and load it."""
    try:
        scratch = tempfile.TemporaryDirectory(
            prefix="megalodon_kernels-", ignore_cleanup_errors=True
        )
    except OSError as error:
        raise NoKernels(f"there is no temporary folder: {error}; set TMPDIR to one") from None
    with scratch as folder:
        name = _name(source, compiler, flags, folder)
        compiled = None
        try:
            library = _stored(cache_folder(), name)
            if library is None:
                compiled = _compile(source, compiler, flags, folder)
                library = _store(compiled, cache_folder(), name)
            return ctypes.CDLL(str(library))
        except (OSError, RuntimeError) as error:
            if isinstance(error, NoKernels):
                raise
            problem = getattr(error, "strerror", None) or str(error).rstrip(".")
        try:
            loaded = ctypes.CDLL(str(compiled or _compile(source, compiler, flags, folder)))
        except OSError as error:
            raise _Refused(f"{error}; and from the cache: {problem}") from None
        cache = os.environ.get(CACHE_VARIABLE) or "the user's cache"
        warn_once(
            "cache",
            f"Compiled C kernels cannot be stored in {cache} or loaded from there: {problem}. "
            f"Each process compiles them again, which takes seconds; set {CACHE_VARIABLE} to a folder "
            "that can be written and from which programs may run",
        )
        return loaded


def _name(source: Path, compiler: list[str], flags: tuple[str, ...], scratch: str) -> str:
    """Return a name for the library of this code, this compiler and this CPU.

    What the compiler defines names its version and the instructions of the CPU: a home folder may be
    shared by machines that differ.
    """
    defined = _run([*compiler, *flags, "-dM", "-E", "-x", "c", os.devnull], scratch)
    texts = (path.read_text(encoding="utf-8") for path in (source, _HEADER))
    parts = *texts, *compiler, *flags, defined
    key = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{source.stem}-{key[:16]}"


def _stored(folder: Path, name: str) -> Path | None:
    """Return the library that is stored as ``name``, if its bytes are those that were stored."""
    for library in folder.glob(f"{name}-*.so"):
        if library.stem == f"{name}-{hashlib.sha256(library.read_bytes()).hexdigest()}":
            return library
        library.unlink(missing_ok=True)
    return None


def _store(compiled: Path, folder: Path, name: str) -> Path:
    """Copy a library to the cache, where no process ever sees a part of it."""
    content = compiled.read_bytes()
    library = folder / f"{name}-{hashlib.sha256(content).hexdigest()}.so"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=folder, prefix="partial-")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o755)
        os.replace(partial, library)
    except BaseException:
        os.unlink(partial)
        raise
    return library


def _compile(source: Path, compiler: list[str], flags: tuple[str, ...], scratch: str) -> Path:
    compiled, library = Path(scratch, "kernels.o"), Path(scratch, "kernels.so")
    _run([*compiler, *flags, "-c", str(source), "-o", str(compiled)], scratch)
    # Not with the flags: OpenMP would be linked.
    _run([*compiler, "-shared", str(compiled), "-o", str(library), "-lm"], scratch)
    if not library.exists():
        raise _Refused(f"{shlex.join(compiler)} made no library, and gave no error")
    return library


def _run(command: list[str], scratch: str) -> str:
    """Return what a command prints.  Raises :class:`_Refused` if it fails, NoKernels if it hangs."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "TMPDIR": scratch},
            start_new_session=True,
        )
    except OSError as error:
        raise _Refused(f"{shlex.join(command)} cannot be run: {error}") from None
    with process:
        try:
            output, errors = process.communicate(timeout=TIME_LIMIT)
        except BaseException as error:
            # With all that it started; when it has ended by itself, a compiler's server may live on.
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise NoKernels(
                f"{shlex.join(command)} took more than {TIME_LIMIT:g} seconds; "
                "set CC to another C compiler"
            ) from None
    if process.returncode:
        raise _Refused(
            f"{shlex.join(command)} ended with {process.returncode}: {errors.strip()[:2000]}"
        )
    return output
