#!/usr/bin/env bash
# WikiText-103, word by word.  `wikitext103.sh --help` says how to use it; settings: wikitext103.yaml.
# DATA_DIR holds wiki.{train,valid,test}.tokens, or what fairseq-preprocess made of them.  --demo needs
# nothing: it takes English text that comes with Python, as such files.

RECIPE=lm/wikitext103
CONFIG=wikitext103
DEMO_CONFIG=wikitext103_demo
METRIC=perplexity  # the same per word: words and end tokens are the tokens
# Mega's way: the split in ten streams, each read from left to right
EVALUATION=(--piece 4096 --segments 10)
DEMO_EVALUATION=(--piece 512 --segments 10 --first-context 128)

source "$(dirname -- "${BASH_SOURCE[0]}")/language_model.sh"

prepare_data() {
    local source=$DATA_DIR
    PREPARED=$DATA_DIR/prepared
    if ((DEMO)); then
        demo_text --words
        source=$DEMO_TEXT
    elif is_prepared "$DATA_DIR"; then
        PREPARED=$DATA_DIR
        return
    fi
    run_python megalodon_tasks.recipes.lm.prepare_wikitext103 "$source" "$PREPARED"
}

run_recipe "$@"
