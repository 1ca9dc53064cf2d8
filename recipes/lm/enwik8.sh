#!/usr/bin/env bash
# enwik8, byte by byte.  `enwik8.sh --help` says how to use it; settings: enwik8.yaml.
# DATA_DIR holds the file enwik8, enwik8.zip, or prepared data.  --demo needs nothing: it takes English
# text that comes with Python, one document per help topic.

RECIPE=lm/enwik8
CONFIG=enwik8
DEMO_CONFIG=enwik8_demo
METRIC=bits_per_byte
EVALUATION=(--piece 8192)
DEMO_EVALUATION=(--piece 2048 --first-context 256 --compressors)

source "$(dirname -- "${BASH_SOURCE[0]}")/language_model.sh"

prepare_data() {
    if ((DEMO)); then
        demo_text
        run_python megalodon_tasks.recipes.lm.prepare_text "$DEMO_TEXT" "$PREPARED" --name python-topics
    elif is_prepared "$DATA_DIR"; then
        PREPARED=$DATA_DIR
    else
        PREPARED=$DATA_DIR/prepared
        run_python megalodon_tasks.recipes.lm.prepare_enwik8 "$DATA_DIR" "$PREPARED"
    fi
}

run_recipe "$@"
