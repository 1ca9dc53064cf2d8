"""Evaluate on tasks of lm-evaluation-harness: ``megalodon lm-eval CHECKPOINT --tasks hellaswag,piqa``.

All further options are those of the command ``lm_eval run`` of the harness.  Beside its tasks there are
the groups ``paper-table1``, ``paper-table2`` and ``long-context``.
"""

# pyright: reportMissingImports=false

import argparse
import difflib
import logging
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from megalodon_tasks.cli import options
from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation import text_model
from megalodon_tasks.evaluation.hf_folder import write_tokenizer
from megalodon_tasks.option_types import whole

BATCH_SIZE = 8
TASKS = Path(__file__).parents[1] / "evaluation" / "harness_tasks"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command's own options."""
    parser = options.parser(
        "lm-eval",
        "Evaluate a language model on tasks of lm-evaluation-harness.  Options that are not listed here "
        "are those of `lm_eval run`, such as --batch_size, --limit, --output_path and --metadata.",
        "SAVE/checkpoint_best.pt --tasks hellaswag,piqa --batch_size 16",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help=options.ANY_MODEL)
    add(
        "--tasks",
        required=True,
        help="names of tasks and groups with commas between, or YAML files",
    )
    add("--data", type=Path, help="prepared data with the tokenizer (default: as in training)")
    options.add_chunk_size(parser)
    add("--piece", type=whole(1), help="tokens of a text read at a time (default: 2048)")
    add("--include_path", help="folder of further tasks")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run the harness's command on the checkpoint."""
    given, others = build_parser().parse_known_args(arguments)
    try:
        from lm_eval._cli import HarnessCLI
        from lm_eval.utils import setup_logging

        import megalodon_tasks.hf  # noqa: F401
        from megalodon_tasks.evaluation import harness_model  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"megalodon lm-eval needs the extra 'eval' ({error}): pip install 'megalodon-tasks[eval]'"
        ) from None
    setup_logging(logging.WARNING)
    before = sys.argv
    sys.argv = ["lm_eval", "run", "--tasks", given.tasks, *others]
    try:
        harness = HarnessCLI()
        chosen = harness.parse_args()
    finally:
        sys.argv = before
    set_model(chosen, given)
    with tempfile.TemporaryDirectory() as folder:
        # For tasks that measure texts in tokens, as RULER does.
        write_tokenizer(text_model.load_tokenizer(given.checkpoint, given.data), Path(folder))
        chosen.metadata = {"tokenizer": folder, **(chosen.metadata or {})}
        try:
            harness.execute(chosen)
        except ImportError as error:
            raise UserError(f"a task of {given.tasks} needs another package: {error}") from error
        except ValueError as error:
            missing = re.fullmatch(r"Tasks not found: (.+)", str(error))
            if not missing:
                raise
            raise UserError(unknown_tasks(missing[1].split(", "), chosen.include_path)) from None


def set_model(chosen: argparse.Namespace, given: argparse.Namespace) -> None:
    """Put the checkpoint, and this project's tasks, into the harness's options.

    Raises :class:`UserError` for options of the harness that name another model.
    """
    for name, value in {"--model": chosen.model, "--model_args": chosen.model_args}.items():
        if value:
            raise UserError(f"{name} {value}: the model is the checkpoint; leave the option out")
    settings = {
        "checkpoint": str(given.checkpoint),
        "data": None if given.data is None else str(given.data),
        "chunk_size": given.chunk_size,
        "piece": given.piece,
    }
    chosen.model = "megalodon"
    chosen.model_args = {name: value for name, value in settings.items() if value is not None}
    chosen.include_path = [str(TASKS), *filter(None, [given.include_path])]
    if not hasattr(chosen, "batch_size"):
        chosen.batch_size = BATCH_SIZE


def unknown_tasks(names: Sequence[str], include_path: list[str]) -> str:
    """Return a text that says which tasks are unknown, and the nearest that there are."""
    from lm_eval.tasks import TaskManager

    known = TaskManager(include_path=include_path).all_tasks
    said = []
    for name in names:
        near = ", ".join(difflib.get_close_matches(name, known, n=3)) or "none"
        said.append(f"{name}: there is no such task; near: {near}")
    return "; ".join(said) + "; `lm_eval ls tasks` lists those of the harness"
