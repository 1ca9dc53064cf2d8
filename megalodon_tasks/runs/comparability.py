"""Say whether a result compares with the published number of its benchmark, or why not.

A result records of which data it is, how its model was trained, and which settings of the training are
not those of the recipe.  Everything here follows from that record.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from megalodon_tasks.configuration import find_recipe, training_configuration
from megalodon_tasks.errors import UserError
from megalodon_tasks.runs import record, results

NAMED_REASONS = 4
_SECTIONS = ("task", "model", "criterion", "optimization", "optimizer", "lr_scheduler", "ema")
# Fields that decide neither what is learned nor what is scored, and those that a run fills in itself.
# The batch is compared as a whole, so update_freq may differ.
_WITHOUT_EFFECT = {
    "data", "effective_batch", "seed", "vocabulary", "classes", "checkpoint_activations", "update_freq",
    "compile_blocks", "stop_time_hours", "peak_flops", "train_subset", "valid_subset", "rebuild_batches",
    "eval_mode", "eval_streams", "eval_multiple", "eval_chunk_size", "ema_fp32", "ema_seed_model",
    "ema_update_freq",
}  # fmt: skip
_PRECISIONS = {"fp16": "float16", "memory_efficient_fp16": "float16", "bf16": "bfloat16"}


def describe_training(folder: Path, config: DictConfig) -> dict[str, Any]:
    """Describe the training of a checkpoint in ``folder`` by its settings and the record beside it.

    ``batch`` is the effective one: items, or at most so many tokens, of all processes and accumulated
    steps.  What only the record knows is null without it.
    """
    run, settings = None, record.plain_settings(config)
    with contextlib.suppress(UserError):
        run = record.read_run(folder)
    start = run.start if run else {}
    used = [name for key, name in _PRECISIONS.items() if settings["common"].get(key)]
    return {
        "updates": run.updates if run else None,
        "max_update": settings["optimization"].get("max_update"),
        "epochs": run.epochs if run else None,
        "max_epoch": settings["optimization"].get("max_epoch"),
        "batch": _recorded_batch(start) or batch_of(settings, start.get("processes")),
        "processes": start.get("processes"),
        "device": start.get("device"),
        "precision": used[0] if used else "float32",
        "manifest": (start.get("data") or {}).get("manifest"),
    }


def _recorded_batch(start: Mapping[str, Any]) -> dict[str, int] | None:
    size = start.get("effective_batch")
    return {start["effective_batch_unit"]: size} if size else None


def batch_of(config: Mapping[str, Any], processes: int | None) -> dict[str, int] | None:
    """Return the effective batch, ``{"items": n}`` or ``{"tokens": n}``; None if it is not known.

    It is ``task.effective_batch`` where that is set, else what ``processes`` read for an update.
    """
    dataset, effective = config["dataset"], config["task"].get("effective_batch")
    accumulated = config["optimization"].get("update_freq") or [1]
    for unit, field in (("items", "batch_size"), ("tokens", "max_tokens")):
        size = dataset.get(field)
        if size and (effective or processes):
            return {unit: effective or size * (processes or 1) * accumulated[-1]}
    return None


def judge(result: Mapping[str, Any], config: DictConfig) -> dict[str, Any]:
    """Return what a new line of ``results.jsonl`` says of comparing it with a published number.

    ``changed_settings`` maps a field of ``config``, with which the model was trained, to the recipe's
    value and its own, where they differ; it is null where no recipe belongs to the benchmark.
    ``compared_with`` is the id of the row of ``recipes/results.csv`` with the published number, or null.
    ``comparable`` is true, or the reasons why the two do not compare.
    """
    row, recipe = _matching_row(result), _settings_of_recipe(result["benchmark"])
    changed = (
        None if recipe is None else _changed_settings(result, recipe, record.plain_settings(config))
    )
    chunk_size = (recipe["task"].get("eval_chunk_size") if recipe else None) or result["chunk_size"]
    reasons = [*_reasons({**result, "changed_settings": changed}, row, chunk_size)]
    more = len(reasons) - NAMED_REASONS
    text = "; ".join(reasons[:NAMED_REASONS]) + (f"; and {more} more" if more > 0 else "")
    return {
        "changed_settings": changed,
        "compared_with": row["id"] if row else None,
        "comparable": text or True,
    }


def _settings_of_recipe(benchmark: str) -> dict[str, Any] | None:
    """Return the configuration of the recipe of this id; None if there is none."""
    name, _, variant = benchmark.partition("-")
    try:
        recipe = find_recipe(name)
        folder, file = recipe.script.parent, recipe.config_name(variant == "demo")
        return record.plain_settings(training_configuration(folder, file, ["task.data=DATA"]))
    except UserError:
        return None


def _changed_settings(
    result: Mapping[str, Any], expected: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Map the fields of ``config`` that are not as ``expected`` to both values."""
    found = {section: dict(config.get(section) or {}) for section in _SECTIONS}
    found["model"]["chunk_size"] = result["chunk_size"]
    names = [settings["model"]["_name"] for settings in (expected, config)]
    architectures = {name.partition("_")[0] for name in names}
    changed = {"model._name": names} if len(architectures) > 1 else {}
    changed |= {
        f"{section}.{field}": [value, found[section].get(field, value)]
        for section in _SECTIONS
        for field, value in expected[section].items()
        if field not in _WITHOUT_EFFECT
        and (section == "optimization" or field not in expected["optimization"])
        and found[section].get(field, value) != value
    }
    batches = [batch_of(expected, 1), result["training"]["batch"]]
    return changed | (
        {"batch": batches} if None not in batches and batches[0] != batches[1] else {}
    )


def _matching_row(result: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the row of the published number for the benchmark and chunk size of a result."""
    rows = {r["id"]: r for r in results.published(result["benchmark"]) if r["paper_value"]}
    variant = f"{result['benchmark']}-chunk{result.get('chunk_size')}"
    return rows.get(variant) or rows.get(result["benchmark"])


def _reasons(
    result: Mapping[str, Any], row: Mapping[str, str] | None, chunk_size: int | None
) -> Iterator[str]:
    """Yield why ``result`` does not compare with ``row``, what weighs most first.

    ``chunk_size``: that in evaluation, of the published number.
    """
    yield from result["data"]["differences"]
    if row is None:
        yield f"no number is published for {result['benchmark']}"
    elif row["metric"] != result["metric"]:
        yield f"metric {result['metric']} (published: {row['metric']})"
    if result["split"] != "test":
        yield f"split {result['split']} (published: test)"
    yield from _reasons_in_training(result)
    yield from _reasons_in_evaluation(result, chunk_size)
    changed = result["changed_settings"]
    if changed is None:
        yield f"no recipe has the id {result['benchmark']}; name one with --recipe"
        return
    for field, (expected, found) in changed.items():
        if field != "model.chunk_size" or row is None or not row["id"].endswith(f"-chunk{found}"):
            yield f"{field} {_shown(found)} (recipe: {_shown(expected)})"


def _reasons_in_training(result: Mapping[str, Any]) -> Iterator[str]:
    training, manifest = result["training"], result["data"]["manifest"]
    if not result["update"]:
        yield "the checkpoint was not trained here"
    else:
        for unit, limit in (("updates", "max_update"), ("epochs", "max_epoch")):
            reached, planned = training[unit], training[limit]
            if reached is not None and planned and reached < planned:
                yield f"trained for {reached:,} of {planned:,} {unit}"
    if training["manifest"] is not None and training["manifest"] != manifest:
        yield "evaluated on other data than it was trained on"


def _reasons_in_evaluation(result: Mapping[str, Any], chunk_size: int | None) -> Iterator[str]:
    for field, value in (result.get("task_overrides") or {}).items():
        yield f"evaluated with task.{field} {value}"
    if result.get("time_step", 1) != 1:
        yield f"evaluated at time step {result['time_step']}"
    if result.get("dynamic"):
        yield results.DYNAMIC
    if context := result.get("segment_tokens"):
        yield f"context cut after {context:,} tokens"
    if length := result.get("concatenated"):
        yield f"documents shuffled and joined up to {length:,} tokens"
    if result["evaluation_chunk_size"] != chunk_size:
        other = "trained with" if chunk_size == result["chunk_size"] else "published:"
        yield (
            f"evaluated with chunk size {_shown(result['evaluation_chunk_size'])} ({other} "
            f"{_shown(chunk_size)})"
        )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{number:,} {unit}" for unit, number in value.items())
    finite = isinstance(value, float) and math.isfinite(value)
    return "null" if value is None else f"{value:g}" if finite else str(value)
