"""Megalodon for fairseq: the folder that ``--user-dir`` names.

Importing it makes the import namespace whole (``megalodon_tasks.models``, ``.criterions``,
``.cuda_ops`` and ``.recipes`` are folders beside this one in a checkout and inside it in a wheel) and,
where fairseq is installed, registers every model, criterion, task, optimizer and scheduler of the
project.  The op library and the models need torch alone, so without fairseq the package imports and
registers nothing.
"""

import importlib.util
import os

__version__ = "0.1.0"

# The real folder, so that a link to this folder alone (say, among other plugins) finds the siblings too.
_HERE = os.path.dirname(os.path.realpath(__file__))
_ROOT = os.path.dirname(_HERE)
if not os.path.isfile(os.path.join(_HERE, "models", "__init__.py")):
    if not os.path.isfile(os.path.join(_ROOT, "models", "__init__.py")):
        raise ImportError(
            f"{_HERE} was copied without its sibling folders models, criterions, cuda_ops and recipes; "
            "point --user-dir at the megalodon_tasks folder of a whole checkout or an installed wheel"
        )
    __path__.append(_ROOT)

if importlib.util.find_spec("fairseq") is not None:
    from megalodon_tasks import registration  # noqa: F401
