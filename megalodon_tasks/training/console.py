"""Show losses, checkpoints and warnings of a training run on the terminal.

fairseq logs its whole configuration, the model and a dozen notices per epoch at the same level as the
losses.  ``train.log`` has all of it; the terminal has these few lines, and a bar if it is a terminal.
"""

import logging
import time
from collections.abc import Iterator
from typing import Any

from fairseq.logging import progress_bar
from tqdm import tqdm

FILE_ONLY = {"console": False}  # passed to logging as ``extra``: the line goes only to the log file

NOTICES = (
    "num. shared model params",
    "Loaded checkpoint",
    "Saved checkpoint",
    "Stopping training",
    "stopping training",
    "early stop",
    "done training",
)
BAR_STATISTICS = ("loss", "accuracy", "ppl")


class ConsoleHandler(logging.StreamHandler):
    """Show warnings, losses and a few notices, one short line each, above the bar.

    ``hydra.job_logging`` names this class, so that it is built in each process that trains.  It also
    makes fairseq use :class:`TerminalBar`.
    """

    def __init__(self, stream: Any = None) -> None:
        super().__init__(stream)
        progress_bar.TqdmProgressBar = TerminalBar

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the terminal shows ``record``."""
        if not getattr(record, "console", True):
            return False
        if record.levelno >= logging.WARNING or not record.name.startswith("fairseq"):
            return True
        return record.getMessage().startswith(NOTICES)

    def format(self, record: logging.LogRecord) -> str:
        """Join time, source and message; the source of losses is ``train``, ``valid``, ..."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        source = record.name.rsplit(".", 1)[-1]
        level = f" {record.levelname.lower()}:" if record.levelno >= logging.WARNING else ""
        return f"{clock} {source} |{level} {record.getMessage()}"

    def emit(self, record: logging.LogRecord) -> None:
        """Print above the bar, if one is shown."""
        tqdm.write(self.format(record), file=self.stream)
        self.flush()


class TerminalBar(progress_bar.TqdmProgressBar):
    """Show few statistics beside fairseq's bar, and log all of them to the file as without a bar."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # a run that resumes within an epoch starts there
        self.i = self.tqdm.initial = self.tqdm.n = self.tqdm.last_print_n = self.n

    def __iter__(self) -> Iterator[Any]:
        """Count each item: tqdm updates its own count only when it draws."""
        for item in self.tqdm:
            self.i += 1
            yield item

    def log(self, stats: dict[str, Any], tag: str | None = None, step: int | None = None) -> None:
        """Show the running averages; called once every ``common.log_interval`` updates."""
        stats = self._format_stats(stats)
        shown = {name: f"{float(stats[name]):.4g}" for name in BAR_STATISTICS if name in stats}
        self.tqdm.set_postfix(shown, update=stats.get("num_updates"), refresh=False)
        position = f"{self.prefix}:  {self.i:5d} / {len(self.iterable):d}"
        with progress_bar.rename_logger(progress_bar.logger, tag):
            progress_bar.logger.info(f"{position} {self._str_commas(stats)}", extra=FILE_ONLY)
