"""Show the user's mistakes as one message that says what to do, without a traceback.

The library raises ``ValueError``, ``FileNotFoundError``, and classes of its own such as
``BackendUnavailable``, so that it needs neither fairseq nor hydra.  Only the files that face fairseq
import this one.  They turn these errors into :class:`UserError`, which hydra prints without a traceback,
and :func:`install_excepthook` does in all other commands.

``MEGALODON_DEBUG=1`` in the environment shows the traceback again.
"""

import contextlib
import errno
import functools
import os
import sys
import types
from collections.abc import Callable

import torch.multiprocessing
from hydra.errors import CompactHydraException

# What a disk, or the path that the user gave, refuses.
DISK_ERRORS = {
    errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ELOOP,
    errno.ENAMETOOLONG, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS, errno.ESTALE,
}  # fmt: skip
DEBUG_VARIABLE = "MEGALODON_DEBUG"
_PACKAGE = __name__.split(".")[0]


class UserError(CompactHydraException, ValueError):
    """Something that the user can put right; the message says what, where, the value, and how.

    Data loader workers and spawned processes pass an exception on as the text of its traceback; only the
    message of the ``UserError`` in that text is shown.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_message_in(message))


def _message_in(text: str) -> str:
    """Return what follows the last mention of :class:`UserError` in a traceback, else ``text``."""
    return text.rsplit(f"{__name__}.UserError: ", 1)[-1].strip()


class user_errors(contextlib.ContextDecorator):
    """Turn this project's errors into UserError: ``with user_errors():`` or ``@user_errors()``.

    Exception classes of this project, missing files, what a disk refuses and a lack of memory are always
    translated, a ``ValueError`` only if code of this project raised it: one from inside a library is a
    defect that needs its traceback.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, UserError):
            return
        missing = isinstance(error, FileNotFoundError)
        if missing and error.filename is not None:
            raise UserError(f"{error.filename}: there is no such file or folder") from error
        if isinstance(error, OSError) and error.filename is not None and error.errno in DISK_ERRORS:
            raise UserError(f"{error.filename}: {error.strerror}") from error
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise UserError(f"there is not enough memory ({error})") from error
        ours = type(error).__module__.split(".")[0] == _PACKAGE
        if ours or missing or (isinstance(error, ValueError) and _raised_here(traceback)):
            raise UserError(str(error)) from error


def _raised_here(traceback: types.TracebackType | None) -> bool:
    module = ""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return module.split(".")[0] == _PACKAGE


def debugging() -> bool:
    """Return whether the user asked for tracebacks."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def user_message(error: BaseException) -> str | None:
    """Return the message to show for ``error``, or None if the user cannot fix it."""
    if isinstance(error, UserError):
        return str(error)
    spawned = isinstance(error, torch.multiprocessing.ProcessRaisedException)
    if spawned and f"{__name__}.UserError: " in str(error):
        return _message_in(str(error))
    return None


def install_excepthook() -> None:
    """Let an uncaught UserError end the process with ``error: message`` and exit status 1.

    The previous hook shows all other errors.  Safe to call again.
    """
    if debugging():
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    if getattr(sys.excepthook, "func", None) is not _show:
        sys.excepthook = functools.partial(_show, sys.excepthook)


def _show(
    previous: Callable[..., None],
    kind: type[BaseException],
    error: BaseException,
    traceback: types.TracebackType | None,
) -> None:
    message = None if debugging() else user_message(error)
    if message is None:
        previous(kind, error, traceback)
    else:
        print(f"error: {message}", file=sys.stderr)
