"""Train a recipe: ``megalodon train --config-dir DIR --config-name NAME ...``.

The run is that of ``fairseq-hydra-train`` with the same arguments.  Around it, this command imports
the plugin, refuses a missing configuration (fairseq would train something else), takes relative paths
from the caller's folder, keeps everything of the run in its save folder (``metrics.jsonl``,
``train.log``, ``hydra/``), resumes from ``checkpoint_last.pt`` if there is one, and ends in one message
where a setting or a file is wrong.
"""

import argparse
import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fairseq_cli import hydra_train

import megalodon_tasks
from megalodon_tasks import errors
from megalodon_tasks.cli import options
from megalodon_tasks.configuration import check_fields, hydra_overrides, quoted
from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat import literal_text, training_settings
from megalodon_tasks.training import trace
from megalodon_tasks.training.console import FILE_ONLY

logger = logging.getLogger("megalodon_tasks.cli.train")

AFTER_INTERRUPT = "the same command continues from the last checkpoint"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command; what it does not know goes to hydra."""
    parser = options.parser(
        "train",
        "Train a recipe with fairseq and hydra.  Further arguments are hydra's: key=value overrides, "
        "--multirun, --cfg job ...",
        "--config-dir recipes/lra --config-name listops --data DATA/prepared --save-dir SAVE",
        allow_abbrev=False,
    )
    parser.add_argument("--config-dir", required=True, help="folder of the recipe's YAML file")
    parser.add_argument("--config-name", required=True, help="name of that file, without .yaml")
    parser.add_argument("--data", help="folder of the prepared data (task.data)")
    parser.add_argument("--save-dir", help="folder of the run (checkpoint.save_dir)")
    return parser


def hydra_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the command line for hydra.  Later overrides win, so the user's stand last.

    Raises :class:`UserError` where ``--config-dir`` holds no file of that name, and for an override of
    a field that there is not.
    """
    given, hydra_words = build_parser().parse_known_args(arguments)
    folder, name = _checked_config(given.config_dir, given.config_name)
    check_fields(Path(folder), name, hydra_words)
    package = os.path.dirname(os.path.abspath(megalodon_tasks.__file__))
    overrides = [
        f"common.user_dir={path(package)}",
        f"common.log_format={'tqdm' if sys.stderr.isatty() else 'simple'}",
        "hydra.job.chdir=false",
        "hydra.job_logging.handlers.console.class=megalodon_tasks.training.console.ConsoleHandler",
    ]
    if not is_multirun(hydra_words):
        if "${" in (
            given.save_dir or ""
        ):  # hydra takes its own folder for a reference: it gets none
            os.makedirs(given.save_dir, exist_ok=True)
            overrides += ["hydra.run.dir=.", "hydra.output_subdir=null"]
        else:
            overrides.append("hydra.run.dir=${checkpoint.save_dir}/hydra")
        overrides.append(
            "hydra.job_logging.handlers.file.filename=${checkpoint.save_dir}/train.log"
        )
    if given.data is not None:
        overrides.append(f"task.data={path(given.data)}")
    if given.save_dir is not None:
        overrides.append(f"checkpoint.save_dir={path(given.save_dir)}")
    return [
        "--config-dir",
        folder,
        "--config-name",
        name,
        *overrides,
        *hydra_overrides(hydra_words),
    ]


def path(name: str) -> str:
    """Write a path, made absolute, as a value of hydra's override grammar."""
    return quoted(literal_text.literal(os.path.abspath(name)))


def is_multirun(arguments: Sequence[str]) -> bool:
    """Return whether hydra is to run several jobs, each in a folder of its own."""
    return bool({"--multirun", "-m"} & set(arguments))


def _checked_config(config_dir: str, config_name: str) -> tuple[str, str]:
    folder, name = Path(config_dir).resolve(), config_name.removesuffix(".yaml")
    if not folder.is_dir():
        raise UserError(f"--config-dir {config_dir}: there is no such folder")
    if not (folder / f"{name}.yaml").is_file() or "/" in name:
        names = {path.stem for path in folder.glob("*.yaml")} - {"base"}
        known = ", ".join(sorted(names)) or "none"
        raise UserError(
            f"--config-name {config_name}: there is no {name}.yaml in {folder} itself; "
            f"configurations there: {known}"
        )
    return str(folder), name


def _with_messages(run: Callable[[Any], float]) -> Callable[[Any], float]:
    """Let a UserError end the process with its message only; the log also gets tracebacks."""

    @functools.wraps(run)
    def run_with_messages(cfg: Any) -> float:
        try:
            with errors.user_errors():
                trace.request(cfg)
                return run(cfg)
        except Exception as error:
            message = None if errors.debugging() else errors.user_message(error)
            if message is None:
                logger.error("training failed", exc_info=True, extra=FILE_ONLY)
                raise
            logger.error(message, extra=FILE_ONLY)
            print(f"error: {message}", file=sys.stderr)
            raise SystemExit(1) from None

    return run_with_messages


def main(arguments: Sequence[str]) -> None:
    """Train, in this process."""
    for patch in (training_settings, literal_text):
        patch.install()  # in hydra_train too, which was imported after the plugin
    sys.argv = ["fairseq-hydra-train", *hydra_arguments(arguments)]
    if not is_multirun(arguments):
        hydra_train._hydra_main = _with_messages(hydra_train._hydra_main)
    hydra_train.cli_main()
