#!/usr/bin/env bash
# Path-X of the Long Range Arena.  DATA_DIR holds the release (or a folder of it), Mega's path-x, or
# prepared data.

RECIPE=lra/pathx
GENERATES=1
source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"
run_recipe "$@"
