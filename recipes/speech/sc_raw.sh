#!/usr/bin/env bash
# Speech Commands from raw samples.  DATA_DIR holds speech_commands_v0.02 (or is it, or a folder above it),
# Mega's speech_commands, or prepared data.  The big model:
# sc_raw.sh DATA SAVE model._name=megalodon_sc_raw_big optimization.lr=[0.008]

RECIPE=speech/sc_raw
source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"

# At half the sampling rate without training for it, and then as trained, which is the run's result.
evaluate_recipe() {
    local half_rate=8000
    ((DEMO)) && half_rate=2000
    evaluate_checkpoint "$1-half-rate" --task-override "sample_rate=$half_rate" --time-step 2 \
        --confusion "$SAVE_DIR/confusion_half_rate.png"
    evaluate_classifier "$1"
}

run_recipe "$@"
