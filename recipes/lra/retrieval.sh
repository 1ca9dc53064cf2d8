#!/usr/bin/env bash
# Retrieval (AAN) of the Long Range Arena.  `retrieval.sh --help` says how to use it; settings:
# retrieval.yaml.  DATA_DIR holds new_aan_pairs.{train,eval,test}.tsv (or the whole release), Mega's aan,
# or prepared data.

RECIPE=lra/retrieval
CONFIG=retrieval
DEMO_CONFIG=retrieval_demo

source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"

PREPARE=megalodon_tasks.recipes.lra.retrieval.prepare

prepare_data() {
    if ((DEMO)); then
        start_demo
        run_python megalodon_tasks.recipes.lra.demo_texts retrieval "$DATA_DIR/demo/raw"
        run_python "$PREPARE" "$DATA_DIR/demo/raw" "$PREPARED" --max-bytes 128
    elif ! find_prepared; then
        run_python "$PREPARE" "$DATA_DIR" "$PREPARED"
    fi
}

run_recipe "$@"
