#!/usr/bin/env bash
# Retrieval (AAN) of the Long Range Arena.  `retrieval.sh --help` says how to use it; settings:
# retrieval.yaml.  DATA_DIR holds new_aan_pairs.{train,eval,test}.tsv (or the whole release), Mega's aan,
# or prepared data.

RECIPE=lra/retrieval
CONFIG=retrieval
DEMO_CONFIG=retrieval_demo

source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"

PREPARE=megalodon_tasks.recipes.lra.prepare_retrieval

prepare_data() {
    if ((DEMO)); then
        # small matrices: a second thread gains little, and loses much where others share the cores
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
        PREPARED=$DATA_DIR/demo/prepared
        run_python megalodon_tasks.recipes.lra.demo_texts retrieval "$DATA_DIR/demo/raw"
        run_python "$PREPARE" "$DATA_DIR/demo/raw" "$PREPARED" --max-bytes 128
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

run_recipe "$@"
