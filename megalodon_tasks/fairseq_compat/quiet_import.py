"""Import fairseq's tasks without changing the program's logging.

Two of their files configure the root logger when they are imported (tasks/text_to_speech.py:23,
tasks/frm_text_to_speech.py:13), at level INFO and DEBUG, and one logs a line about a package that is not
needed here.
"""

import importlib
import logging
import sys


def install() -> None:
    """Import fairseq's tasks and leave the root logger as it was.

    Do nothing where fairseq was imported before: its commands configure logging on purpose.
    """
    if "fairseq.tasks" in sys.modules:
        return
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(logging.INFO)
    try:
        importlib.import_module("fairseq.tasks")
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)
