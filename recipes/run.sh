# What the run scripts of all recipes share; they source this file.
#
# A recipe's script sets
#   RECIPE       its id in recipes/results.csv
#   CONFIG       the name of its YAML file, which lies beside the script
#   DEMO_CONFIG  the same for --demo, if it has one
# defines prepare_data, which brings $DATA_DIR into the form that training reads and sets PREPARED to
# that folder, and ends with: run_recipe "$@"
# prepare_data finds DATA_DIR and DEMO (1 or 0), calls Python modules with run_python, and may use
# start_demo and find_prepared (below).
# A recipe that is evaluated otherwise than by evaluate_classifier (below) defines evaluate_recipe, which
# is given the id of the result.

set -euo pipefail

SCRIPT_DIR=$(cd -- "$(dirname -- "${BASH_SOURCE[1]}")" && pwd)
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    local name
    name=$(basename -- "$0")
    cat <<TEXT
usage: $name [--demo] [prepare|train|evaluate] DATA_DIR SAVE_DIR [config overrides...]

Prepares what is missing in DATA_DIR, trains, evaluates the best checkpoint on the test split, prints
the result beside the published one and appends it to SAVE_DIR/results.jsonl.  With a first word, does
that part only.  Started again, it goes on where it was stopped; a finished training is not repeated.

  --demo      a small model on small data: minutes on two CPU cores
  overrides   settings of $CONFIG.yaml, such as model.chunk_size=64 optimization.max_update=1000

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
    local positional=()
    OVERRIDES=()
    local argument
    for argument in "$@"; do
        case $argument in
            -h | --help) usage; exit 0 ;;
            --demo) DEMO=1 ;;
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
    if ((DEMO)) && [[ -z ${DEMO_CONFIG:-} ]]; then
        usage_error "$RECIPE has no --demo"
    fi
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

run_python() {
    "$PYTHON" -m "$@"
}

# start_demo: sets PREPARED to the folder of the demo's data
start_demo() {
    # The demo's matrices are small: a second thread gains little, and loses much where another program
    # shares the cores and one thread waits for the other at every operation.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    PREPARED=$DATA_DIR/demo/prepared
}

# find_prepared: sets PREPARED to the folder that is to hold the prepared data; whether it does
find_prepared() {
    PREPARED=$DATA_DIR
    [[ -f $PREPARED/manifest.json ]] && return 0
    PREPARED=$DATA_DIR/prepared
    [[ -f $PREPARED/manifest.json ]] || return 1
    # not again, so that what was chosen with the options of the preparation lasts
    echo "$PREPARED: prepared before, taken as it is"
}

train() {
    local config=$CONFIG
    ((DEMO)) && config=$DEMO_CONFIG
    run_python megalodon_tasks.cli.train --config-dir "$SCRIPT_DIR" --config-name "$config" \
        --data "$PREPARED" --save-dir "$SAVE_DIR" ${OVERRIDES[@]+"${OVERRIDES[@]}"}
}

# evaluate_checkpoint ID [options...]: the best checkpoint on the test split
evaluate_checkpoint() {
    run_python megalodon_tasks.cli.evaluate "$SAVE_DIR/checkpoint_best.pt" --data "$PREPARED" --split test \
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
    if [[ -f $SAVE_DIR/train.log ]]; then
        run_python megalodon_tasks.runs.plot "$SAVE_DIR"
    fi
}

run_recipe() {
    parse_arguments "$@"
    if [[ $STEP == evaluate && ! -f $SAVE_DIR/checkpoint_best.pt ]]; then
        die "$SAVE_DIR/checkpoint_best.pt does not exist: train first"
    fi
    find_python
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
