# What the run scripts of all recipes share; they source this file.
#
# A recipe's script sets
#   RECIPE     its id in recipes/results.csv, such as lra/listops; listops.yaml and listops_demo.yaml are
#              its configurations
#   GENERATES  1 if `megalodon prepare` can make synthetic data for it
# and ends with: run_recipe "$@"
# A recipe that is evaluated otherwise than by evaluate_classifier (below) defines evaluate_recipe, which
# gets the id of the result.  The comment at the top of the script is part of its --help.

set -euo pipefail

SCRIPT_DIR=$(cd -- "$(dirname -- "$0")" && pwd)
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
GENERATES=${GENERATES:-0}

usage() {
    local generate=""
    ((GENERATES)) && generate="
  --generate  make synthetic data by the rules of the benchmark where DATA_DIR holds none; results on it
              do not compare with published ones"
    cat <<TEXT
usage: $(basename -- "$0") [options] [prepare|train|evaluate] DATA_DIR SAVE_DIR [config overrides...]

$(sed -n '2,/^$/s/^# \{0,1\}//p' "$0")
Prepares what is missing in DATA_DIR, trains, evaluates the best checkpoint on the test split, prints
the result beside the published one and appends it to SAVE_DIR/results.jsonl.  With a first word, does
only that part.  Started again, it continues where it was stopped; a finished training is not repeated.

  --demo      a small model on small data: minutes on two CPU cores$generate
  overrides   settings of ${RECIPE#*/}.yaml, such as model.chunk_size=64 optimization.max_update=1000

environment: PYTHON names the interpreter (default: .venv of the checkout, else python3)
TEXT
}

die() {
    echo "error: $*" >&2
    exit 1
}

usage_error() {
    echo "error: $*" >&2
    usage >&2
    exit 2
}

parse_arguments() {
    DEMO=0
    STEP=all
    PREPARE_OPTIONS=(--if-missing)
    OVERRIDES=()
    local positional=() argument
    for argument in "$@"; do
        case $argument in
            -h | --help) usage; exit 0 ;;
            --demo) DEMO=1; PREPARE_OPTIONS+=(--demo) ;;
            --generate)
                ((GENERATES)) || usage_error "there is no synthetic data for $RECIPE"
                PREPARE_OPTIONS+=(--generate)
                ;;
            -*) usage_error "unknown option $argument" ;;
            *)
                if ((${#positional[@]} == 0)) && [[ $STEP == all && $argument =~ ^(prepare|train|evaluate)$ ]]; then
                    STEP=$argument
                elif ((${#positional[@]} < 2)); then
                    positional+=("$argument")
                elif [[ $argument == *=* ]]; then
                    OVERRIDES+=("$argument")
                else
                    usage_error "'$argument' is not an override: write key=value"
                fi
                ;;
        esac
    done
    ((${#positional[@]} == 2)) || usage_error "DATA_DIR and SAVE_DIR are needed"
    DATA_DIR=${positional[0]}
    SAVE_DIR=${positional[1]}
    [[ -n $DATA_DIR && -n $SAVE_DIR ]] || usage_error "DATA_DIR or SAVE_DIR is empty"
    ((${#PREPARE_OPTIONS[@]} <= 2)) || usage_error "--demo brings its own data, leave out --generate"
    if ((${#OVERRIDES[@]})) && [[ $STEP == prepare || $STEP == evaluate ]]; then
        usage_error "overrides change training, '$STEP' takes none (it got ${OVERRIDES[*]})"
    fi
}

find_python() {
    if [[ -z ${PYTHON:-} ]]; then
        PYTHON=$ROOT/.venv/bin/python
        [[ -x $PYTHON ]] || PYTHON=$(command -v python3) || die "there is no python3 on PATH; set PYTHON"
    fi
    # the caller's folder must not provide modules, the checkout must
    export PYTHONSAFEPATH=1
    if [[ -f $ROOT/megalodon_tasks/__init__.py ]]; then
        export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
    fi
    local check='import importlib.util as u; print(*(m for m in ("torch", "fairseq", "hydra", "megalodon_tasks") if not u.find_spec(m)))'
    local missing
    missing=$("$PYTHON" -c "$check") || die "PYTHON=$PYTHON does not run"
    [[ -z $missing ]] || die "$PYTHON lacks: $missing; run 'make venv' in $ROOT, or set PYTHON to an interpreter that has them"
}

# megalodon COMMAND...: runs it in the background, so that a signal that only this script gets is passed on
# at once and not after the command has ended
CHILD=
SIGNAL=
megalodon() {
    local status=127 last
    "$PYTHON" -m megalodon_tasks "$@" <&0 &
    CHILD=$!
    while true; do
        SIGNAL_SEEN=
        wait "$CHILD" && last=0 || last=$?
        # 127: the signal came when the command had ended, whose status is known
        ((last == 127 && status != 127)) || status=$last
        [[ -n $SIGNAL_SEEN ]] || break
    done
    CHILD=
    [[ -z $SIGNAL || $status != 0 ]] || status=$((128 + $(kill -l "$SIGNAL")))
    return "$status"
}

# pass_on NAME: gives the signal to the command that runs; without one, ends the script
pass_on() {
    SIGNAL=$1
    SIGNAL_SEEN=1
    [[ -n $CHILD ]] || exit $((128 + $(kill -l "$1")))
    kill -s "$1" "$CHILD" 2> /dev/null || true
}

pass_signals_on() {
    local name
    for name in INT TERM USR1; do
        trap "pass_on $name" "$name"
    done
}

# prepare_data: sets PREPARED to the folder of the prepared data, which the command prints
prepare_data() {
    local source=$DATA_DIR
    if ((DEMO)); then
        source=$DATA_DIR/demo
        # The demo's matrices are small: a second thread gains little, and loses much where another
        # program shares the cores and one thread waits for the other at every operation.
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    fi
    PRINTED=$(mktemp)
    trap 'rm -f -- "$PRINTED"' EXIT
    megalodon prepare "$RECIPE" "$source" "$source/prepared" "${PREPARE_OPTIONS[@]}" > "$PRINTED"
    PREPARED=$(< "$PRINTED")
}

train() {
    local config=${RECIPE#*/}
    ((DEMO)) && config=${config}_demo
    megalodon train --config-dir "$SCRIPT_DIR" --config-name "$config" \
        --data "$PREPARED" --save-dir "$SAVE_DIR" ${OVERRIDES[@]+"${OVERRIDES[@]}"}
}

# evaluate_checkpoint ID [options...]: the best checkpoint on the test split
evaluate_checkpoint() {
    megalodon evaluate "$SAVE_DIR/checkpoint_best.pt" --data "$PREPARED" --split test \
        --recipe "$1" --results "$SAVE_DIR/results.jsonl" "${@:2}"
}

# evaluate_classifier ID: the same, with the tables and the picture of its answers
evaluate_classifier() {
    evaluate_checkpoint "$1" \
        --predictions "$SAVE_DIR/predictions.csv" --confusion "$SAVE_DIR/confusion.png" \
        --by-length "$SAVE_DIR/accuracy_by_length.csv" --by-class "$SAVE_DIR/accuracy_by_class.csv"
}

evaluate() {
    local recipe=$RECIPE
    ((DEMO)) && recipe=$RECIPE-demo
    if declare -F evaluate_recipe > /dev/null; then
        evaluate_recipe "$recipe"
    else
        evaluate_classifier "$recipe"
    fi
    if [[ -f $SAVE_DIR/metrics.jsonl ]]; then
        megalodon report "$SAVE_DIR" --training-curve "$SAVE_DIR/training_curve.png"
    fi
}

run_recipe() {
    parse_arguments "$@"
    if [[ $STEP == evaluate && ! -f $SAVE_DIR/checkpoint_best.pt ]]; then
        die "$SAVE_DIR/checkpoint_best.pt does not exist: train first"
    fi
    find_python
    pass_signals_on
    prepare_data
    case $STEP in
        prepare) ;;
        train) train ;;
        evaluate) evaluate ;;
        all)
            train
            evaluate
            ;;
    esac
}
