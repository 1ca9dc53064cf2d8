#!/usr/bin/env bash
# enwik8, byte by byte.  DATA_DIR holds the file enwik8, enwik8.zip, or prepared data.  --demo needs
# nothing: it takes English text that comes with Python, one document per help topic.

RECIPE=lm/enwik8
METRIC=bits_per_byte
# Mega's way: the split in fifty streams, each read from left to right
EVALUATION=(--piece 8192 --segments 50)
DEMO_EVALUATION=(--piece 2048 --first-context 256 --compressors)
source "$(dirname -- "${BASH_SOURCE[0]}")/language_model.sh"
run_recipe "$@"
