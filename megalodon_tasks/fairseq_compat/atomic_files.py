"""Leave checkpoints whole or absent, whenever the process is killed.

fairseq writes a checkpoint to a temporary name and renames it (checkpoint_utils.py:585), but then makes
``checkpoint_best.pt`` and ``checkpoint_last.pt`` by copying over the old file in place
(checkpoint_utils.py:139, file_io.py:76), and flushes nothing to the disk.  Killed there, it leaves a
broken ``checkpoint_last.pt``, and the run cannot resume.  The patch flushes, and renames the copies too.

Where the disk is full fairseq tries three times, each time after what it wrote before
(checkpoint_utils.py:600), and ends in a traceback.  The patch tries once, removes what it wrote, and
says which file could not be written: the checkpoints before it are whole.

A save folder that vanishes in a training, as with a network drive, would be made again, empty, on
whatever disk is below it (checkpoint_utils.py:51).  The patch ends the run instead.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat.patching import wrap

TEMPORARY_SUFFIX = ".tmp"  # fairseq's own (checkpoint_utils.py:585)


def install() -> None:
    """Make the copies atomic and let a checkpoint reach the disk before it gets its name."""
    wrap(PathManager, "copy", _atomic_copy)
    wrap(checkpoint_utils, "_torch_persistent_save", _with_flush)
    wrap(checkpoint_utils, "torch_persistent_save", _with_message)
    wrap(checkpoint_utils, "verify_checkpoint_directory", _in_a_folder)
    wrap(checkpoint_utils, "save_checkpoint", _in_the_same_folder)


def _atomic_copy(stock: Callable, src_path: str, dst_path: str, overwrite: bool = False) -> bool:
    if os.path.exists(dst_path) and not overwrite:
        return False
    temporary = dst_path + TEMPORARY_SUFFIX
    with _written(dst_path):
        with open(src_path, "rb") as source, open(temporary, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
            _flush(target)
        os.replace(temporary, dst_path)
    return True


@contextlib.contextmanager
def _written(path: str) -> Iterator[None]:
    """Explain what keeps a checkpoint from being written to ``path``; remove the part that was."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch's writer says only that the file failed
        if not isinstance(error, OSError) and "write" not in str(error):
            raise
        with contextlib.suppress(OSError):
            os.unlink(path + TEMPORARY_SUFFIX)
        reason = getattr(error, "strerror", None) or "writing failed, as on a full disk"
        raise UserError(
            f"{path}: the checkpoint could not be written ({reason}); those before are whole. Once "
            "there is room and the folder can be written, the same command continues from the last"
        ) from error


def _with_message(stock: Callable, obj: Any, filename: str, async_write: bool = False) -> None:
    with _written(filename):
        stock(obj, filename, async_write)


def _in_a_folder(stock: Callable, place: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return stock(place, *args, **kwargs)
    except OSError as error:
        path = error.filename or getattr(place, "save_dir", place)
        raise UserError(
            f"{path}: no checkpoint can be written there ({error.strerror}); name a folder that can "
            "be written, or bring it back: the same command continues from the last checkpoint in it"
        ) from error


def _in_the_same_folder(stock: Callable, cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    def save(cfg: Any) -> Any:
        if trainer.data_parallel_rank == 0 and not cfg.no_save:
            os.stat(cfg.save_dir)
        return stock(cfg, trainer, *args, **kwargs)

    return _in_a_folder(save, cfg)


def _with_flush(stock: Callable, obj: Any, f: Any) -> None:
    if isinstance(f, str):
        stock(obj, f)
        return
    torch.save(obj, f)
    _flush(f)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def remove_leftovers(save_dir: Path) -> list[str]:
    """Delete half-written checkpoints that a killed run left in ``save_dir``; return their names."""
    left = sorted(save_dir.glob(f"*.pt{TEMPORARY_SUFFIX}"))
    for path in left:
        path.unlink(missing_ok=True)
    return [path.name for path in left]
