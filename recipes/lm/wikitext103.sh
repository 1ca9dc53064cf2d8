#!/usr/bin/env bash
# WikiText-103, word by word.  DATA_DIR holds wiki.{train,valid,test}.tokens, or what fairseq-preprocess
# made of them.  --demo needs nothing: it takes English text that comes with Python, as such files.

RECIPE=lm/wikitext103
METRIC=perplexity  # the same per word: words and end tokens are the tokens
# Mega's way: the split in ten streams, each read from left to right
EVALUATION=(--piece 4096 --segments 10)
DEMO_EVALUATION=(--piece 512 --segments 10 --first-context 128)
source "$(dirname -- "${BASH_SOURCE[0]}")/language_model.sh"
run_recipe "$@"
