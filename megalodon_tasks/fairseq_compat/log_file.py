"""Write each line once to ``--log-file``.

fairseq adds a further file handler to the same logger at each epoch (logging/progress_bar.py:45), so
that a line of epoch n appears n times.  Where several jobs run in one process, the losses of a job also
go to the files of the jobs before it (the same line, and fairseq_cli/train.py:64).
"""

import logging
from collections.abc import Callable
from typing import Any

from fairseq.logging import progress_bar as progress_bar_module

from megalodon_tasks.fairseq_compat.patching import wrap


def install() -> None:
    """Remove the last file handler before fairseq adds the next one."""
    wrap(progress_bar_module, "progress_bar", _with_one_handler)


def _with_one_handler(stock: Callable, *args: Any, **kwargs: Any) -> Any:
    # validation passes no file: its lines belong in the file of the training around it
    if kwargs.get("log_file") is not None:
        keep_file_handlers(progress_bar_module.logger, newest=0)
    return stock(*args, **kwargs)


def keep_file_handlers(logger: logging.Logger, newest: int) -> None:
    """Close and remove all file handlers of ``logger`` but the ``newest`` last ones."""
    handlers = [h for h in logger.handlers if isinstance(h, logging.FileHandler)]
    for handler in handlers[: len(handlers) - newest]:
        logger.removeHandler(handler)
        handler.close()
