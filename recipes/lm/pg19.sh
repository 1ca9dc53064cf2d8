#!/usr/bin/env bash
# PG-19, whole books.  `pg19.sh --help` says how to use it; settings: pg19.yaml.
# DATA_DIR holds train/, validation/ and test/ with one text file a book, or prepared data.  With
# sentencepiece.model beside these folders that vocabulary is used, else one is trained.  --demo needs
# nothing: it takes English text that comes with Python, one document per help topic.

RECIPE=lm/pg19
CONFIG=pg19
DEMO_CONFIG=pg19_demo
METRIC=word_perplexity
EVALUATION=(--piece 8192)
DEMO_EVALUATION=(--piece 1024 --first-context 128)

source "$(dirname -- "${BASH_SOURCE[0]}")/language_model.sh"

prepare_data() {
    if ((DEMO)); then
        demo_text
        run_python megalodon_tasks.recipes.lm.prepare_text "$DEMO_TEXT" "$PREPARED" \
            --name python-topics --tokens sentencepiece --pieces 1000
    elif is_prepared "$DATA_DIR"; then
        PREPARED=$DATA_DIR
    else
        local model=()
        [[ -f $DATA_DIR/sentencepiece.model ]] && model=(--sentencepiece-model "$DATA_DIR/sentencepiece.model")
        PREPARED=$DATA_DIR/prepared
        run_python megalodon_tasks.recipes.lm.prepare_pg19 "$DATA_DIR" "$PREPARED" ${model[@]+"${model[@]}"}
    fi
}

run_recipe "$@"
