#!/usr/bin/env bash
# Speech Commands from raw samples.  `sc_raw.sh --help` says how to use it; settings: sc_raw.yaml.
# DATA_DIR holds speech_commands_v0.02 (or is it), Mega's speech_commands, or prepared data.

RECIPE=speech/sc_raw
CONFIG=sc_raw
DEMO_CONFIG=sc_raw_demo

source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"

PREPARE=megalodon_tasks.recipes.speech.prepare_speech_commands

prepare_data() {
    if ((DEMO)); then
        # small matrices: a second thread gains little, and loses much where others share the cores
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
        PREPARED=$DATA_DIR/demo/prepared
        run_python megalodon_tasks.recipes.speech.demo_words "$DATA_DIR/demo/raw"
        run_python "$PREPARE" "$DATA_DIR/demo/raw" "$PREPARED" \
            --splits official --lengths fit --sample-rate 4000 --seconds 0.5
    elif [[ -f $DATA_DIR/dataset.json ]]; then
        PREPARED=$DATA_DIR
    else
        PREPARED=$DATA_DIR/prepared
        if [[ -f $PREPARED/dataset.json ]]; then
            # not again, so that what was chosen with the options of the preparation lasts
            echo "$PREPARED: prepared before, taken as it is"
        else
            run_python "$PREPARE" "$DATA_DIR" "$PREPARED"
        fi
    fi
}

# The test split as it is, then the same model on every second sample of it.
evaluate_recipe() {
    run_python megalodon_tasks.cli.evaluate "$SAVE_DIR/checkpoint_best.pt" --data "$PREPARED" --split test \
        --recipe "$1" --results "$SAVE_DIR/results.jsonl" \
        --predictions "$SAVE_DIR/predictions.csv" --confusion "$SAVE_DIR/confusion.png" \
        --by-class "$SAVE_DIR/accuracy_by_class.csv"
    local half=8000
    ((DEMO)) && half=2000
    run_python megalodon_tasks.cli.evaluate "$SAVE_DIR/checkpoint_best.pt" --data "$PREPARED" --split test \
        --task-override sample_rate=$half --time-step 2 \
        --recipe "$1-half-rate" --results "$SAVE_DIR/results.jsonl" \
        --confusion "$SAVE_DIR/confusion_half_rate.png"
}

run_recipe "$@"
