#!/usr/bin/env bash
# Instruction tuning.  DATA_DIR holds train.jsonl, valid.jsonl and test.jsonl with a conversation a line, and
# as `vocabulary` a link to the prepared data of the checkpoint to start from, which the override
# checkpoint.finetune_from_model=CHECKPOINT names.  --demo needs nothing: it writes instructions such as
# "reverse badge", and starts from a random model.

RECIPE=lm/instruct
source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"

evaluate_recipe() {
    megalodon evaluate-answers "$SAVE_DIR/checkpoint_best.pt" --data "$PREPARED" --split test \
        --recipe "$1" --results "$SAVE_DIR/results.jsonl"
}

run_recipe "$@"
