"""Show the user's mistakes as one message that says what to do, without a traceback.

The library raises ``ValueError``, ``FileNotFoundError``, and classes of its own such as
``BackendUnavailable``; that needs neither fairseq nor hydra.  Only the files that face fairseq import
this one.  They turn these errors into :class:`UserError`, which hydra prints without a traceback.
:func:`install_excepthook` does the same in ``fairseq-train`` and ``fairseq-validate``.

``MEGALODON_DEBUG=1`` in the environment brings the traceback back.
"""

import contextlib
import os
import sys
import types

import torch.multiprocessing
from hydra.errors import CompactHydraException

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
    """``text``, or what follows the last mention of :class:`UserError` if it is a traceback."""
    return text.rsplit(f"{__name__}.UserError: ", 1)[-1].strip()


class user_errors(contextlib.ContextDecorator):
    """``with user_errors():`` or ``@user_errors()``: turn this project's errors into UserError.

    Exception classes of this project and missing files are always translated, a ``ValueError`` only if
    code of this project raised it: one from inside a library is a defect that needs its traceback.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        if isinstance(error, UserError):
            return
        if isinstance(error, FileNotFoundError) and error.filename is not None:
            raise UserError(f"{error.filename}: there is no such file or folder") from error
        ours = error is not None and kind.__module__.split(".")[0] == _PACKAGE
        missing = isinstance(error, FileNotFoundError)
        if ours or missing or (isinstance(error, ValueError) and _raised_here(traceback)):
            raise UserError(str(error)) from error


def _raised_here(traceback: types.TracebackType | None) -> bool:
    module = ""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return module.split(".")[0] == _PACKAGE


def debugging() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def user_message(error: BaseException) -> str | None:
    """The message to show for ``error``, or None if the user cannot fix it."""
    if isinstance(error, UserError):
        return str(error)
    spawned = isinstance(error, torch.multiprocessing.ProcessRaisedException)
    if spawned and f"{__name__}.UserError: " in str(error):
        return _message_in(str(error))
    return None


def install_excepthook() -> None:
    """Let an uncaught UserError end the process with ``error: message`` and exit status 1.

    All other errors go to the hook that was there before.  Safe to call again.
    """
    if debugging():
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    previous = sys.excepthook
    if getattr(previous, "of_megalodon_tasks", False):
        return

    def show(
        kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None
    ) -> None:
        message = None if debugging() else user_message(error)
        if message is None:
            previous(kind, error, traceback)
        else:
            print(f"error: {message}", file=sys.stderr)

    show.of_megalodon_tasks = True
    sys.excepthook = show
