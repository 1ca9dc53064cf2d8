# What the run scripts of the language models share; they source this file instead of ../run.sh.
#
# A script also sets
#   METRIC           what is recorded: word_perplexity, bits_per_byte ... (megalodon evaluate-lm --help)
#   EVALUATION       further options of megalodon evaluate-lm
#   DEMO_EVALUATION  those of --demo

source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"

evaluate_recipe() {
    local more=("${EVALUATION[@]}")
    ((DEMO)) && more=("${DEMO_EVALUATION[@]}")
    megalodon evaluate-lm "$SAVE_DIR/checkpoint_best.pt" --data "$PREPARED" --split test \
        --recipe "$1" --results "$SAVE_DIR/results.jsonl" --metric "$METRIC" "${more[@]}"
    if ((DEMO)); then
        echo "a sample at temperature 0.7:"
        megalodon sample "$SAVE_DIR/checkpoint_best.pt" --data "$PREPARED" \
            --prompt "The " --temperature 0.7 --tokens 600 | sed 's/^/    /'
    fi
}
