"""Patch fairseq where it fails on this stack: one file per bug, each with its reason.

File names and line numbers are those of fairseq-fixed 0.12.3.1; ve-fairseq 0.12.3 differs from it in
none of the patched functions.

:func:`install` is called when the plugin registers itself and may be called again.  For each patch a
test shows that fairseq fails without it, so that a version of fairseq that no longer needs it is
noticed.
"""

from megalodon_tasks.fairseq_compat import quiet_import, third_party_warnings


def install() -> None:
    """Apply every patch to the fairseq of this process."""
    third_party_warnings.install()  # first: importing fairseq already warns
    quiet_import.install()
    from megalodon_tasks import errors
    from megalodon_tasks.fairseq_compat import (
        adaptive_loss,
        atomic_files,
        best_checkpoint,
        bf16_option,
        byte_encoder,
        checkpoint_errors,
        compiled_modules,
        divergence,
        epoch_position,
        gather_before_save,
        jobs,
        last_batch,
        literal_text,
        log_file,
        loss_in_pieces,
        model_size,
        optimizer_settings,
        precision,
        processes,
        safe_globals,
        sharded_checkpoints,
        sharded_tensors,
        training_settings,
        trusted_components,
    )

    errors.install_excepthook()
    for patch in (
        compiled_modules,
        safe_globals,
        atomic_files,
        checkpoint_errors,
        trusted_components,
        log_file,
        jobs,
        gather_before_save,
        best_checkpoint,
        sharded_tensors,
        sharded_checkpoints,
        precision,
        divergence,
        epoch_position,
        optimizer_settings,
        bf16_option,
        training_settings,
        literal_text,
        model_size,
        processes,
        adaptive_loss,
        loss_in_pieces,
        byte_encoder,
        last_batch,
    ):
        patch.install()
