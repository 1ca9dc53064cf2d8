"""Train a resumed run with the optimizer settings of now, not with those in the checkpoint.

``load_state_dict`` of an optimizer also restores the settings of its parameter groups
(optim/fairseq_optimizer.py:87), so that another weight decay or other betas are ignored without a word.
The docstring there promises the opposite.  The patch puts the settings of now back, except for the
learning rate, which the schedule sets before the next update.
"""

from collections.abc import Callable
from typing import Any

from fairseq.optim import FairseqOptimizer

from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat.patching import wrap

_OF_THE_CHECKPOINT = ("params", "lr", "initial_lr")


def install() -> None:
    """Patch what all optimizers inherit."""
    wrap(FairseqOptimizer, "load_state_dict", _with_settings_of_now)


def _with_settings_of_now(
    stock: Callable,
    self: FairseqOptimizer,
    state_dict: dict[str, Any],
    optimizer_overrides: dict[str, Any] | None = None,
) -> None:
    settings = [
        {name: value for name, value in group.items() if name not in _OF_THE_CHECKPOINT}
        for group in self.param_groups
    ]
    try:
        stock(self, state_dict)
    except ValueError as error:  # torch: other parameter groups
        raise UserError(
            f"the optimizer of the checkpoint has other groups of parameters ({error}): set "
            "weight_decay and spare_vectors as they were, or checkpoint.reset_optimizer=true"
        ) from error
    unknown = set(optimizer_overrides or ()) - {name for g in self.param_groups for name in g}
    if unknown:
        known = ", ".join(sorted(set(self.param_groups[0]) - {"params"}))
        raise UserError(
            f"checkpoint.optimizer_overrides: the optimizer has no {', '.join(sorted(unknown))}; "
            f"it has {known}"
        )
    for group, own in zip(self.param_groups, settings, strict=True):
        group.update(own | (optimizer_overrides or {}))
