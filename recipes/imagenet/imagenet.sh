#!/usr/bin/env bash
# ImageNet-1K.  `imagenet.sh --help` says how to use it; settings: imagenet.yaml.
# DATA_DIR holds train/<class>/ and val/<class>/, or is a folder prepared before.  The small model:
# imagenet.sh DATA SAVE model._name=megalodon_imagenet_tiny

RECIPE=imagenet/imagenet
CONFIG=imagenet
DEMO_CONFIG=imagenet_demo

source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"

prepare_data() {
    local images=$DATA_DIR
    PREPARED=$DATA_DIR/prepared
    if ((DEMO)); then
        start_demo
        images=$DATA_DIR/demo/images
        if [[ ! -f $PREPARED/manifest.json || $STEP == prepare ]]; then
            run_python megalodon_tasks.recipes.imagenet.demo_digits "$images"
        fi
    elif [[ -f $DATA_DIR/manifest.json ]]; then
        PREPARED=$DATA_DIR
        return
    fi
    # does nothing where no class folder has changed since
    run_python megalodon_tasks.recipes.imagenet.prepare_imagenet "$images" "$PREPARED"
}

run_recipe "$@"
