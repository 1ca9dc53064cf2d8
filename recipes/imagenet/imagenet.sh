#!/usr/bin/env bash
# ImageNet-1K.  DATA_DIR holds train/<class>/ and val/<class>/, or is a folder of prepared data.  The small
# model: imagenet.sh DATA SAVE model._name=megalodon_imagenet_tiny

RECIPE=imagenet/imagenet
source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"
run_recipe "$@"
