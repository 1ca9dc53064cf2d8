#!/usr/bin/env bash
# Pathfinder of the Long Range Arena.  DATA_DIR holds the release (or a folder of it), Mega's pathfinder,
# or prepared data.

RECIPE=lra/pathfinder
GENERATES=1
source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"
run_recipe "$@"
