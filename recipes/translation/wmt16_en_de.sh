#!/usr/bin/env bash
# WMT16 English-German.  DATA_DIR holds Google's release of it (train.tok.clean.bpe.32000.en and so on), or
# what fairseq-preprocess made of it.  --demo needs nothing: it writes numbers in words and in digits.

RECIPE=translation/wmt16_en_de
source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"

# The demo is measured on lists of twice the longest training length as well, before its result.
evaluate_recipe() {
    local common=("$SAVE_DIR/checkpoint_best.pt" --data "$PREPARED" --results "$SAVE_DIR/results.jsonl")
    if ((DEMO)); then
        common+=(--metric exact)
        megalodon evaluate-translation "${common[@]}" --recipe "$1-twice-as-long" --split test1
        megalodon evaluate-translation "${common[@]}" --recipe "$1" --split test
    else
        megalodon evaluate-translation "${common[@]}" --recipe "$1" --split test \
            --lenpen 0.5 --remove-bpe "@@ "
    fi
}

run_recipe "$@"
