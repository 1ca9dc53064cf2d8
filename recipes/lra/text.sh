#!/usr/bin/env bash
# Text (IMDB) of the Long Range Arena.  DATA_DIR holds the released reviews (aclImdb, or a folder above
# it), Mega's imdb-4000, or prepared data.

RECIPE=lra/text
source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"
run_recipe "$@"
