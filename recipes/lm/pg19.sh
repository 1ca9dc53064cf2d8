#!/usr/bin/env bash
# PG-19, whole books.  DATA_DIR holds train/, validation/ and test/ with one text file a book, or prepared
# data.  With sentencepiece.model beside these folders that vocabulary is used, else one is trained.  --demo
# needs nothing: it takes English text that comes with Python, one document per help topic.

RECIPE=lm/pg19
METRIC=word_perplexity
EVALUATION=(--piece 8192)
DEMO_EVALUATION=(--piece 1024 --first-context 128)
source "$(dirname -- "${BASH_SOURCE[0]}")/language_model.sh"
run_recipe "$@"
