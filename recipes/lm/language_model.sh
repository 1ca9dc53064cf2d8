# What the run scripts of the language models share; they source this file instead of ../run.sh.
#
# Beside what run.sh wants, a script sets
#   METRIC           what is recorded: word_perplexity, bits_per_byte ... (see cli/evaluate_lm.py)
#   EVALUATION       further options of cli/evaluate_lm.py
#   DEMO_EVALUATION  those of --demo

source "$(dirname -- "${BASH_SOURCE[0]}")/../run.sh"
SCRIPT_DIR=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

evaluate_recipe() {
    local more=("${EVALUATION[@]}")
    ((DEMO)) && more=("${DEMO_EVALUATION[@]}")
    run_python megalodon_tasks.cli.evaluate_lm "$SAVE_DIR/checkpoint_best.pt" --data "$PREPARED" --split test \
        --recipe "$1" --results "$SAVE_DIR/results.jsonl" --metric "$METRIC" "${more[@]}"
    if ((DEMO)); then
        echo "a sample at temperature 0.7:"
        run_python megalodon_tasks.cli.sample "$SAVE_DIR/checkpoint_best.pt" --data "$PREPARED" \
            --prompt "The " --temperature 0.7 --tokens 600 | sed 's/^/    /'
    fi
}

# is_prepared FOLDER: whether it holds a finished corpus, or what fairseq-preprocess wrote
is_prepared() {
    [[ -f $1/manifest.json || (-f $1/dict.txt && -f $1/train.idx) ]]
}

# demo_text [options of recipes/lm/python_topics.py...]: starts the demo on English text that comes with
# Python, in $DEMO_TEXT
demo_text() {
    start_demo
    DEMO_TEXT=$DATA_DIR/demo/text
    run_python megalodon_tasks.recipes.lm.python_topics "$DEMO_TEXT" "$@"
}
