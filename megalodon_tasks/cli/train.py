"""Train a recipe: ``python -m megalodon_tasks.cli.train --config-dir DIR --config-name NAME ...``.

The run is that of ``fairseq-hydra-train`` with the same arguments.  Around it, this command imports
the plugin, refuses a missing configuration (fairseq would train something else), takes relative paths
from the caller's folder, keeps everything of the run in its save folder (``train.log``, ``hydra/``),
goes on from ``checkpoint_last.pt`` if there is one, and ends in one message where a setting or a file
is wrong.
"""

import argparse
import functools
import logging
import os
import re
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fairseq_cli import hydra_train

import megalodon_tasks
from megalodon_tasks import errors, fairseq_compat
from megalodon_tasks.errors import UserError
from megalodon_tasks.training import fields
from megalodon_tasks.training.console import FILE_ONLY, exit_status

logger = logging.getLogger("megalodon_tasks.cli.train")

# Of these sections hydra knows only the fields that the YAML writes out, and wants ++ before any other;
# fairseq checks the names afterwards all the same.
COMPONENT_FIELD = re.compile(r"(model|task|criterion|optimizer|lr_scheduler)\.\w+=")


def build_parser() -> argparse.ArgumentParser:
    """The options of this command; what it does not know goes to hydra."""
    parser = argparse.ArgumentParser(
        prog="python -m megalodon_tasks.cli.train",
        description="Train a recipe with fairseq and hydra.",
        epilog="Further arguments are hydra's: key=value overrides, --multirun, --cfg job ...",
        allow_abbrev=False,
    )
    parser.add_argument("--config-dir", required=True, help="folder of the recipe's YAML file")
    parser.add_argument("--config-name", required=True, help="name of that file, without .yaml")
    parser.add_argument("--data", help="folder of the prepared data (task.data)")
    parser.add_argument("--save-dir", help="folder of the run (checkpoint.save_dir)")
    return parser


def hydra_arguments(options: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """The command line for hydra.  Later overrides win, so the user's stand last.

    Raises :class:`UserError` where ``--config-dir`` holds no file of that name, and for an override of
    a field that there is not.
    """
    folder, name = _checked_config(options.config_dir, options.config_name)
    fields.check(Path(folder) / f"{name}.yaml", rest)
    package = os.path.dirname(os.path.abspath(megalodon_tasks.__file__))
    overrides = [
        f"common.user_dir={quoted(package)}",
        f"common.log_format={'tqdm' if sys.stderr.isatty() else 'simple'}",
        "hydra.job.chdir=false",
        "hydra.job_logging.handlers.console.class=megalodon_tasks.training.console.ConsoleHandler",
    ]
    if not {"--multirun", "-m"} & set(rest):
        overrides.append("hydra.run.dir=${checkpoint.save_dir}/hydra")
        overrides.append(
            "hydra.job_logging.handlers.file.filename=${checkpoint.save_dir}/train.log"
        )
    if options.data is not None:
        overrides.append(f"task.data={quoted(os.path.abspath(options.data))}")
    if options.save_dir is not None:
        overrides.append(f"checkpoint.save_dir={quoted(os.path.abspath(options.save_dir))}")
    given = [f"++{word}" if COMPONENT_FIELD.match(word) else word for word in rest]
    return ["--config-dir", folder, "--config-name", name, *overrides, *given]


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


def quoted(value: str) -> str:
    """``value`` as a string of hydra's override grammar, whatever characters it has."""
    # a quote is written \', and backslashes are doubled before a quote and nowhere else
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"


def _with_messages(run: Callable[[Any], float]) -> Callable[[Any], float]:
    """Let an error of the user's end the process with its message alone, and keep all in the log."""

    @functools.wraps(run)
    def run_with_messages(cfg: Any) -> float:
        try:
            result = run(cfg)
            _log_peak_memory()
            return result
        except Exception as error:
            message = None if errors.debugging() else errors.user_message(error)
            if message is None:
                logger.error("training failed", exc_info=True, extra=FILE_ONLY)
                raise
            logger.error(message, extra=FILE_ONLY)
            print(f"error: {message}", file=sys.stderr)
            raise SystemExit(1) from None

    return run_with_messages


def _log_peak_memory() -> None:
    unit = 1024 if sys.platform == "darwin" else 1  # ru_maxrss: bytes there, else KiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit / 1024**2
    logger.info(f"peak memory of the process: {peak:.2f} GB", extra=FILE_ONLY)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options, rest = build_parser().parse_known_args(arguments)
    fairseq_compat.install()
    sys.argv = ["fairseq-hydra-train", *hydra_arguments(options, rest)]
    if not {"--multirun", "-m"} & set(rest):
        hydra_train._hydra_main = _with_messages(hydra_train._hydra_main)
    again = "interrupted; the same command goes on from the last checkpoint"
    return exit_status(hydra_train.cli_main, again)


if __name__ == "__main__":
    sys.exit(main())
