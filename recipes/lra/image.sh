#!/usr/bin/env bash
# Image (CIFAR-10) of the Long Range Arena.  DATA_DIR holds cifar-10-batches-py (or is it, or a folder
# above it), Mega's cifar10, or prepared data.

RECIPE=lra/image
source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"
run_recipe "$@"
