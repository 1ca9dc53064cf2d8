#!/usr/bin/env bash
# ListOps of the Long Range Arena.  DATA_DIR holds the released basic_{train,val,test}.tsv (or the whole
# release), Mega's processed files, or prepared data.

RECIPE=lra/listops
GENERATES=1
source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"
run_recipe "$@"
