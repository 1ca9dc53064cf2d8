"""Commands of which one option has a wrong number: each numeric option of each parser."""

import functools
import importlib
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.files import CPU, DATA_HERE, run_in_copy
from tests.fuzz.outcomes import Case

_CHECKPOINT = ("model.pt", *DATA_HERE, CPU)
_BEST = ("checkpoint_best.pt", *DATA_HERE, CPU)
_SWEEP = ("lra/listops", "data", "sweep", "--demo", "--dry-run", "--sweep", "optimization.lr=0.1")
# bench -> the words of each command, without the option
COMMANDS = {
    "classifier": (
        ("evaluate", *_BEST),
        ("inspect", "checkpoint_best.pt", *DATA_HERE),
        ("sweep", *_SWEEP),
    ),
    "translator": (("evaluate-translation", *_BEST),),
    "language model": (
        ("evaluate-lm", *_CHECKPOINT),
        ("sample", *_CHECKPOINT, "--tokens", "3", "--prompt", "a text"),
        ("chat", *_CHECKPOINT, "--template", "template.json"),
    ),
}
# options that say nothing without others
_TOGETHER = {
    "--decay": ("--dynamic", "0.0001"),
    "--epsilon": ("--dynamic", "0.0001", "--gradient-statistics", "statistics"),
    "--statistics-tokens": ("--dynamic", "0.0001", "--gradient-statistics", "statistics"),
    "--order-seed": ("--concatenate", "16"),
}
_SIGNED = ("--seed", "--lenpen")
_WRONG = {
    "nan": "nan", "inf": "inf", "-inf": "-inf", "empty": "", "a word": "seven", "a list": "1,2",
    "a reference": "${a}",
}  # fmt: skip
_POSSIBLE = {"zero": "0", "one": "1", "many": "1000000000", "huge": f"1{'0' * 40}", "tiny": "1e-30"}


def numeric_options(command: str) -> Iterator[str]:
    """Yield the options of a command that take one number."""
    module = importlib.import_module(f"megalodon_tasks.cli.{command.replace('-', '_')}")
    for action in module.build_parser()._actions:
        if action.option_strings and action.type not in (None, Path):
            yield action.option_strings[-1]


def cases(bench: str, template: Path) -> Iterator[Case]:
    """Yield the cases of the commands of ``bench``, whose folder is ``template``."""
    for words in COMMANDS[bench]:
        for option in numeric_options(words[0]):
            values = [(what, value, True) for what, value in _WRONG.items()]
            values += [(what, value, False) for what, value in _POSSIBLE.items()]
            values.append(("negative", "-7", option not in _SIGNED))
            for what, value, refused in values:
                line = (*words, *_TOGETHER.get(option, ()), f"{option}={value}")
                run = functools.partial(run_in_copy, template, line)
                yield Case(f"{bench}: {words[0]}, {option} is {what}", run, refused)
