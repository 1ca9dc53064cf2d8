#!/usr/bin/env bash
# Text (IMDB) of the Long Range Arena.  `text.sh --help` says how to use it; settings: text.yaml.
# DATA_DIR holds the released reviews (aclImdb, or a folder above it), Mega's imdb-4000, or prepared data.

RECIPE=lra/text
CONFIG=text
DEMO_CONFIG=text_demo

source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"

PREPARE=megalodon_tasks.recipes.lra.text.prepare

prepare_data() {
    if ((DEMO)); then
        start_demo
        run_python megalodon_tasks.recipes.lra.demo_texts text "$DATA_DIR/demo/raw"
        run_python "$PREPARE" "$DATA_DIR/demo/raw" "$PREPARED" --subset --validation held-out
    elif ! find_prepared; then
        run_python "$PREPARE" "$DATA_DIR" "$PREPARED"
    fi
}

run_recipe "$@"
