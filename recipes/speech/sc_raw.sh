#!/usr/bin/env bash
# Speech Commands from raw samples.  `sc_raw.sh --help` says how to use it; settings: sc_raw.yaml.
# DATA_DIR holds speech_commands_v0.02 (or is it, or a folder above it), Mega's speech_commands, or
# prepared data.  The big model:
# sc_raw.sh DATA SAVE model._name=megalodon_sc_raw_big optimization.lr=[0.008]

RECIPE=speech/sc_raw
CONFIG=sc_raw
DEMO_CONFIG=sc_raw_demo

source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"

PREPARE=megalodon_tasks.recipes.speech.prepare_speech_commands
HALF_RATE=8000
DEMO_HALF_RATE=2000

prepare_data() {
    if ((DEMO)); then
        start_demo
        HALF_RATE=$DEMO_HALF_RATE
        run_python megalodon_tasks.recipes.speech.demo_words "$DATA_DIR/demo/raw"
        run_python "$PREPARE" "$DATA_DIR/demo/raw" "$PREPARED" \
            --splits official --lengths fit --sample-rate 4000 --seconds 0.5
    elif ! find_prepared; then
        run_python "$PREPARE" "$DATA_DIR" "$PREPARED"
    fi
}

# At half the sampling rate without training for it, and then as trained, which is the run's result.
evaluate_recipe() {
    evaluate_checkpoint "$1-half-rate" --task-override "sample_rate=$HALF_RATE" --time-step 2 \
        --confusion "$SAVE_DIR/confusion_half_rate.png"
    evaluate_classifier "$1"
}

run_recipe "$@"
