"""What a training run shows on the terminal; the log file of the run has everything.

fairseq prints its whole configuration, the model and a dozen notices per epoch at the same level as the
losses.  Here the terminal shows the losses, checkpoints and warnings, and a bar if it is a terminal.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from fairseq.logging import progress_bar
from tqdm import tqdm

INTERRUPTED = 130  # 128 + SIGINT, what a shell expects
FILE_ONLY = {"console": False}  # logging's ``extra`` for a line that only the log file gets

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


def exit_status(work: Callable[[], object], interrupted: str) -> int:
    """Do ``work``; returns 0, or 130 after Ctrl-C, which ends it with the message ``interrupted``."""
    try:
        work()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    return 0


class ConsoleHandler(logging.StreamHandler):
    """Shows warnings, losses and a few notices, one short line each, without breaking the bar.

    ``hydra.job_logging`` names this class, so that it is built in each process that trains; with it
    comes the bar that goes with it.
    """

    def __init__(self, stream: Any = None) -> None:
        super().__init__(stream)
        progress_bar.TqdmProgressBar = TerminalBar

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the terminal shows ``record``."""
        if not getattr(record, "console", True):
            return False
        if record.levelno >= logging.WARNING or not record.name.startswith("fairseq"):
            return True
        return record.getMessage().startswith(NOTICES)

    def format(self, record: logging.LogRecord) -> str:
        """Time, source and message: the logger is ``train``, ``valid`` ... for lines of losses."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        source = record.name.rsplit(".", 1)[-1]
        level = f" {record.levelname.lower()}:" if record.levelno >= logging.WARNING else ""
        return f"{clock} {source} |{level} {record.getMessage()}"

    def emit(self, record: logging.LogRecord) -> None:
        """Print above the bar, if one is shown."""
        tqdm.write(self.format(record), file=self.stream)
        self.flush()


class TerminalBar(progress_bar.TqdmProgressBar):
    """fairseq's bar with few statistics; the rest goes to the log file, as it does without a bar."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # a run that resumes within an epoch starts there
        self.i = self.tqdm.initial = self.tqdm.n = self.tqdm.last_print_n = self.n

    def __iter__(self) -> Iterator[Any]:
        """Count exactly: tqdm's own count is only as new as the last time it drew."""
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
