"""How the settings of models, tasks, optimizers and schedules are declared."""

from dataclasses import field
from typing import Any


def setting(default: Any, meaning: str) -> Any:
    """Return a field of a dataclass, which the help of fairseq's commands explains by ``meaning``."""
    return field(default=default, metadata={"help": meaning})
