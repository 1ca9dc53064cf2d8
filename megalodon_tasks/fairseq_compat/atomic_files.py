"""Leave checkpoints whole or absent, whenever the process is killed.

fairseq writes a checkpoint to a temporary name and renames it (checkpoint_utils.py:585), but then makes
``checkpoint_best.pt`` and ``checkpoint_last.pt`` by copying over the old file in place
(checkpoint_utils.py:139, file_io.py:76), and flushes nothing to the disk.  Killed there, it leaves a
broken ``checkpoint_last.pt``, and the run cannot resume.  The patch flushes, and renames the copies too.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from megalodon_tasks.fairseq_compat.patching import replace

TEMPORARY_SUFFIX = ".tmp"  # fairseq's own (checkpoint_utils.py:585)


def install() -> None:
    """Make the copies atomic and let a checkpoint reach the disk before it gets its name."""
    replace(PathManager, "copy", lambda stock: _atomic_copy)
    replace(checkpoint_utils, "_torch_persistent_save", _with_flush)


def _atomic_copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
    if os.path.exists(dst_path) and not overwrite:
        return False
    temporary = dst_path + TEMPORARY_SUFFIX
    with open(src_path, "rb") as source, open(temporary, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
        _flush(target)
    os.replace(temporary, dst_path)
    return True


def _with_flush(stock: Callable) -> Callable:
    def torch_persistent_save(obj: Any, f: Any) -> None:
        stock(obj, f)
        if not isinstance(f, str):
            _flush(f)

    return torch_persistent_save


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def remove_leftovers(save_dir: Path) -> list[str]:
    """Delete half-written checkpoints that a killed run left in ``save_dir``; return their names."""
    left = sorted(save_dir.glob(f"*.pt{TEMPORARY_SUFFIX}"))
    for path in left:
        path.unlink(missing_ok=True)
    return [path.name for path in left]
