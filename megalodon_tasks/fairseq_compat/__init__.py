"""Patch fairseq where it fails on this stack: one file per bug, each with its reason.

File names and line numbers are those of fairseq-fixed 0.12.3.1; ve-fairseq 0.12.3 differs from it in
none of the patched functions.

:func:`install` is called when the plugin registers itself and may be called again.  For each patch a
test shows that fairseq fails without it, so that a version of fairseq that no longer needs it is
noticed.
"""

import importlib

from megalodon_tasks import errors
from megalodon_tasks.fairseq_compat import quiet_import, third_party_warnings

# In the order of their installation: a later one wraps what an earlier one did.
PATCHES = (
    "compiled_modules",
    "safe_globals",
    "atomic_files",
    "checkpoint_errors",
    "trusted_components",
    "log_file",
    "jobs",
    "gather_before_save",
    "best_checkpoint",
    "sharded_tensors",
    "sharded_checkpoints",
    "precision",
    "divergence",
    "epoch_position",
    "optimizer_settings",
    "bf16_option",
    "training_settings",
    "literal_text",
    "model_size",
    "processes",
    "adaptive_loss",
    "loss_in_pieces",
    "byte_encoder",
    "numpy_two",
    "last_batch",
)


def install() -> None:
    """Apply every patch to the fairseq of this process."""
    third_party_warnings.install()  # first: importing fairseq already warns
    quiet_import.install()
    errors.install_excepthook()
    for patch in PATCHES:
        importlib.import_module(f"{__name__}.{patch}").install()
