"""Register Megalodon with fairseq: this folder is what ``--user-dir`` names.

``megalodon_tasks.models``, ``.criterions``, ``.cuda_ops`` and ``.recipes`` are symbolic links to the
folders at the top of the checkout, and real folders in a wheel.  Where fairseq is installed, importing
this package registers every model, criterion, task, optimizer and scheduler.  The op library and the
models need only torch, so without fairseq the package imports and registers nothing.
"""

import importlib.util
import sys
from pathlib import Path

__version__ = "0.1.0"

_MISSING = [
    name
    for name in ("models", "criterions", "cuda_ops", "recipes")
    if not (Path(__file__).parent / name / "__init__.py").is_file()
]
if _MISSING:
    raise ImportError(
        f"{Path(__file__).parent}: found no folder {', '.join(_MISSING)} here; this folder was copied "
        "without its sibling folders, or git made text files of its symbolic links.  Point --user-dir "
        "at megalodon_tasks in a whole checkout (git config core.symlinks true) or an installed wheel"
    )

if importlib.util.find_spec("fairseq") is not None:
    try:
        from megalodon_tasks import registration  # noqa: F401
    except TypeError as error:
        if sys.version_info < (3, 14):
            raise
        raise ImportError(
            f"this fairseq does not start on Python {sys.version.split()[0]} ({error}); use Python 3.11 "
            "to 3.13, or uninstall fairseq to use the op library and the models by themselves"
        ) from error
