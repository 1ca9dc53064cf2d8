#!/usr/bin/env bash
# Retrieval (AAN) of the Long Range Arena.  DATA_DIR holds new_aan_pairs.{train,eval,test}.tsv (or the
# whole release), Mega's aan, or prepared data.

RECIPE=lra/retrieval
source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"
run_recipe "$@"
