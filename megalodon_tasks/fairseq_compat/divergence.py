"""End a run that diverges, or skip the update, before a number that is not finite is learned or saved.

fairseq looks only at the norm of the gradient (trainer.py:964): a loss or a parameter that is not
finite trains on, and is saved over ``checkpoint_last.pt``.  What it finds ends in a FloatingPointError,
after pages of norms.  The patch checks the loss and the gradient before each update and the parameters
after it.  ``task.skip_nonfinite`` updates of a run are skipped; the next one ends it, with a message
that names the update, the module and the items.  The state is written to ``diverged.pt``, from which no
run resumes.

An overflow of fp16 is fairseq's to handle: it lowers the scale of the loss and skips the update.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.trainer import Trainer
from torch.utils._pytree import tree_leaves

from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat.patching import wrap
from megalodon_tasks.fairseq_compat.sharded_checkpoints import write_shards
from megalodon_tasks.fairseq_compat.sharded_tensors import is_sharded, total_norm

logger = logging.getLogger(__name__)

DIVERGED = "diverged.pt"
SKIPPED = "skipped_nonfinite"  # in a checkpoint's extra_state: how many updates were skipped
ITEMS_NAMED = 20


class NonFiniteUpdate(Exception):
    """An update must not be made; ``cause`` says what is not finite."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


def install() -> None:
    """Patch the update and what is saved."""
    wrap(Trainer, "train_step", _checked_step)
    wrap(Trainer, "clip_grad_norm", _with_check)
    wrap(Trainer, "_aggregate_logging_outputs", _with_losses_of_all)
    wrap(Trainer, "save_checkpoint", _with_count)
    wrap(checkpoint_utils, "save_checkpoint", _only_if_finite)


def restore_count(trainer: Trainer, extra_state: dict[str, Any]) -> None:
    """Continue to count skipped updates where the run that resumes stopped."""
    _memory(trainer)["skipped"] = extra_state.get(SKIPPED, 0)


def _memory(trainer: Trainer) -> dict[str, Any]:
    """Return what is known from one step to the next.

    losses: those of the update in progress.  parameters: the sum of their norms after the last update.
    ids: the items of that update.  skipped: updates of this run.  saved: the last update saved.
    """
    fresh = {"losses": [], "parameters": None, "ids": [], "skipped": 0, "saved": None}
    return vars(trainer).setdefault("_divergence", fresh)


def _checked_step(
    stock: Callable, self: Trainer, samples: list[dict[str, Any]], raise_oom: bool = False
) -> Any:
    memory = _memory(self)
    losses = memory["losses"] = []
    # all tasks call the criterion, whatever they do around it
    hook = self.criterion.register_forward_hook(
        lambda *call: losses.append(call[2][0].detach().float().sum())
    )
    try:
        result = stock(self, samples, raise_oom)
    except NonFiniteUpdate as problem:
        hook.remove()
        return _skip_or_end(self, samples, problem.cause)
    finally:
        hook.remove()
    memory["parameters"], memory["ids"] = _norm(self), _ids(samples)
    return result


def _norm(trainer: Trainer) -> torch.Tensor:
    """Return the sum of the norms of all parameters, which is finite if they are; () float32."""
    parameters = [p.detach() for p in trainer.get_model().parameters() if p.numel()]
    if is_sharded(trainer):
        return total_norm(parameters)
    # the device is not waited for: the number is looked at in the next update
    return torch.stack([n.float() for n in torch._foreach_norm(parameters)]).sum()


def _with_losses_of_all(
    stock: Callable, self: Trainer, logging_outputs: list[dict[str, Any]], *more: Any, **kw: Any
) -> Any:
    result = stock(self, logging_outputs, *more, **kw)
    losses = [log["loss"] for log in result[0] if "loss" in log]
    # all processes decide alike: the loss of one is in the sum of all
    _memory(self)["losses"] = [torch.as_tensor(loss, dtype=torch.float32) for loss in losses]
    return result


def _with_check(stock: Callable, self: Trainer, clip_norm: float) -> torch.Tensor:
    try:
        norm = stock(self, clip_norm)
    except FloatingPointError:  # optim/fp16_optimizer.py: no scale of the loss is small enough
        raise NonFiniteUpdate("gradient") from None
    memory = _memory(self)
    losses, parameters = memory["losses"], memory["parameters"]
    checked = [norm, *losses] + ([] if parameters is None else [parameters])
    if self.cfg.common.amp or torch.stack([n.to(norm) for n in checked]).isfinite().all():
        return norm
    if parameters is not None and not parameters.isfinite():
        raise NonFiniteUpdate("parameter")
    raise NonFiniteUpdate("gradient" if all(n.isfinite() for n in losses) else "loss")


def _skip_or_end(trainer: Trainer, samples: list[dict[str, Any]], cause: str) -> None:
    """Skip the update if ``task.skip_nonfinite`` allows another one; else raise UserError."""
    memory, allowed = _memory(trainer), getattr(trainer.cfg.task, "skip_nonfinite", None) or 0
    if cause != "parameter" and memory["skipped"] < allowed:
        memory["skipped"] += 1
        logger.warning(
            f"update {trainer.get_num_updates() + 1}: a {cause} is not finite; skipped, number "
            f"{memory['skipped']} of at most {allowed} (task.skip_nonfinite); {_items(_ids(samples))}"
        )
        trainer.zero_grad()
        forget = getattr(trainer.task, "after_skipped_update", None)
        if forget is not None:
            forget()
        return
    message = _message(trainer, samples, cause)
    if 0 < allowed <= memory["skipped"]:
        message += f"; {allowed} updates were skipped before"
    raise UserError(message)


def _message(trainer: Trainer, samples: list[dict[str, Any]], cause: str) -> str:
    """Write the state aside and return what the user needs to know about a diverged run."""
    memory, folder = _memory(trainer), Path(trainer.cfg.checkpoint.save_dir)
    after = cause == "parameter"  # found in the update after the one that made it so
    update, ids = trainer.get_num_updates() + (not after), memory["ids"] if after else _ids(samples)
    lines = [
        f"{folder}: training diverged at update {update}: a {cause} is not finite",
        # the processes would have to look for it together
        *([] if is_sharded(trainer) else [_first_module(trainer, samples)]),
        _items(ids),
        _written_aside(trainer, folder / DIVERGED, update),
    ]
    last = folder / f"checkpoint_last{trainer.checkpoint_suffix}.pt"
    if last.is_file():
        of = f" (update {memory['saved']})" if memory["saved"] is not None else ""
        lines.append(f"the last good checkpoint is {last.name}{of}")
    else:
        lines.append("no checkpoint was written before")
    lines.append(
        "resume with a lower optimization.lr or a longer warm-up, or set task.skip_nonfinite=N to skip "
        "up to N such updates"
    )
    return "; ".join(lines)


def _ids(samples: list[dict[str, Any]]) -> list[Any]:
    return [sample["id"] for sample in samples if sample and "id" in sample]


def _items(batches: list[Any]) -> str:
    """List the ``id`` of the items of some batches."""
    ids = [int(i) for batch in batches for i in torch.as_tensor(batch).flatten()]
    more = f" and {len(ids) - ITEMS_NAMED} more" if len(ids) > ITEMS_NAMED else ""
    return f"items of the batch: {', '.join(map(str, ids[:ITEMS_NAMED]))}{more}"


def _written_aside(trainer: Trainer, path: Path, update: int) -> str:
    if trainer.cfg.checkpoint.no_save:
        return "nothing is saved (checkpoint.no_save)"
    try:
        trainer.consolidate_optimizer()
        if is_sharded(trainer):
            write_shards(trainer, path.parent)
        trainer.save_checkpoint(str(path), {"diverged": update})
    except (OSError, RuntimeError, UserError) as error:
        return f"the state could not be written to {path.name} ({error})"
    return f"the state is in {path.name}"


def finite(value: Any) -> bool:
    """Return whether every tensor inside nested containers holds finite numbers only."""
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point() or t.is_complex())


def _first_module(trainer: Trainer, samples: list[dict[str, Any]]) -> str:
    """Say where the first number that is not finite comes from: parameter, input, module, gradient."""
    model = trainer.get_model()
    for name, parameter in model.named_parameters():
        if not finite(parameter):
            return f"parameter {name} is not finite"
    for sample in samples:
        if spoiled := _spoiled_items(sample):
            return f"the input of item {', '.join(map(str, spoiled[:ITEMS_NAMED]))} is not finite"
    return _first_in_repetition(trainer, model, samples)


def _spoiled_items(sample: dict[str, Any]) -> list[int]:
    """Return the ids of the items whose row of an input is not finite."""
    if not sample or "id" not in sample:
        return []
    ids = torch.as_tensor(sample["id"]).flatten().tolist()
    tensors = [t for t in tree_leaves(sample.get("net_input")) if isinstance(t, torch.Tensor)]
    rows = [t for t in tensors if t.is_floating_point() and t.dim() and len(t) == len(ids)]
    return [item for number, item in enumerate(ids) if any(not finite(t[number]) for t in rows)]


def _first_in_repetition(
    trainer: Trainer, model: torch.nn.Module, samples: list[dict[str, Any]]
) -> str:
    """Repeat the update with the same dropout; name what first is not finite in it."""
    found: list[str] = []

    def watch(name: str, module: torch.nn.Module) -> Any:
        def look(_module: Any, _inputs: Any, output: Any) -> None:
            if not found and not finite(output):
                kind = type(module).__name__
                found.append(f"first module with such an output: {name or 'the model'} ({kind})")

        return module.register_forward_hook(look)

    hooks = [watch(name, module) for name, module in model.named_modules()]
    try:
        trainer._set_seed()
        for sample in samples:
            prepared, _ = trainer._prepare_sample(sample)
            loss = trainer.get_criterion()(model, prepared)[0]
            if not found and not finite(loss):
                found.append("the output of the model is finite, the loss of it is not")
            if not found:
                found += _first_gradient(model, loss)
            if found:
                return found[0]
    finally:
        for hook in hooks:
            hook.remove()
    return "repeated, all of the update is finite, so its module is not known"


def _first_gradient(model: torch.nn.Module, loss: torch.Tensor) -> list[str]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # not backward(): the gradients of the update stay, and processes need not meet
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    wrong = [name for name, g in zip(named, gradients, strict=True) if not finite(g)]
    # the backward pass comes to the last module first
    return [f"outputs are finite; first gradient that is not: of {wrong[-1]}"] if wrong else []


def _with_count(
    stock: Callable, self: Trainer, filename: str, extra_state: dict[str, Any]
) -> str | None:
    return stock(self, filename, extra_state | {SKIPPED: _memory(self)["skipped"]})


def _only_if_finite(stock: Callable, cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    memory = _memory(trainer)
    if memory["parameters"] is not None and not memory["parameters"].isfinite():
        raise UserError(_message(trainer, [], "parameter"))
    result = stock(cfg, trainer, *args, **kwargs)
    if not cfg.no_save and not cfg.no_last_checkpoints:
        memory["saved"] = trainer.get_num_updates()
    return result
