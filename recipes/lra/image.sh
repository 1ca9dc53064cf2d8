#!/usr/bin/env bash
# Image (CIFAR-10) of the Long Range Arena.  `image.sh --help` says how to use it; settings: image.yaml.
# DATA_DIR holds cifar-10-batches-py (or is it, or a folder above it), Mega's cifar10, or prepared data.

RECIPE=lra/image
CONFIG=image
DEMO_CONFIG=image_demo

source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"

PREPARE=megalodon_tasks.recipes.lra.image.prepare

prepare_data() {
    if ((DEMO)); then
        start_demo
        run_python megalodon_tasks.recipes.lra.image.demo_images "$DATA_DIR/demo/raw"
        run_python "$PREPARE" "$DATA_DIR/demo/raw" "$PREPARED" --side 8
    elif ! find_prepared; then
        run_python "$PREPARE" "$DATA_DIR" "$PREPARED"
    fi
}

run_recipe "$@"
