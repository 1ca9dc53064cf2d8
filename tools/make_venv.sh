#!/usr/bin/env bash
# Create the virtual environment of this checkout and install everything into it; do nothing if it is
# up to date.  Usage: tools/make_venv.sh [VENV_DIR]; PYTHON=... chooses the interpreter.
#
# It is up to date when the stamp names the present setup.py, constraints.txt, this script, the folder and
# the Python version.  The stamp is written last, so an interrupted install continues.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${1:-.venv}
STAMP=$VENV/.complete
LOG=$VENV/install.log
NEEDED_GB=8
RANGE="3.11 to 3.13"

fail() {
    echo "make venv: $*" >&2
    exit 1
}

# Print the version of interpreter $1, or nothing if it does not run, is too old, or too new for fairseq
# 0.12.3 and hydra 1.3.2, which do not start on Python 3.14.
version_of() {
    "$1" -c 'import sys; (3, 11) <= sys.version_info < (3, 14) and print("%d.%d.%d" % sys.version_info[:3])' \
        2>/dev/null || true
}

# Print what the stamp must contain for Python version $1.
fingerprint() {
    echo "python $1 in $PWD"
    cksum setup.py constraints.txt tools/make_venv.sh
}

is_current() {
    local found
    found=$(version_of "$VENV/bin/python")
    [ -f "$STAMP" ] && [ -n "$found" ] && [ "$(cat "$STAMP")" = "$(fingerprint "$found")" ] || return 1
    [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$found" ]
}

# Set $python to $PYTHON, else to the interpreter of the existing environment, else to the first that works.
choose_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not a command; name a Python $RANGE"
        [ -n "$(version_of "$PYTHON")" ] ||
            fail "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1 | head -n 1); name a Python $RANGE"
        python=$PYTHON
        return
    fi
    for candidate in "$VENV/bin/python" python3 python3.13 python3.12 python3.11 python; do
        if [ -n "$(version_of "$candidate")" ]; then
            python=$candidate
            return
        fi
    done
    fail "no Python $RANGE found; install one (Debian, Ubuntu: apt-get install python3 python3-venv" \
        "python3-dev) or name it: make venv PYTHON=/path/to/python3.11"
}

# Check whether C++ programs that include Python.h compile.
compiles_extensions() {
    local include
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    # CXX may hold options, so it is split on purpose.
    # shellcheck disable=SC2086
    echo '#include <Python.h>' | $CXX "-I$include" -x c++ -fsyntax-only - 2>/dev/null
}

check_machine() {
    local have used=0
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv)"
    [ ! -d "$VENV" ] || used=$(du -sk "$VENV" | cut -f 1)
    have=$(df -Pk . | awk 'NR == 2 { print $4 }')
    [ $((have + used)) -ge $((NEEDED_GB * 1024 * 1024)) ] ||
        fail "$((have / 1024 / 1024)) GB are free in $PWD, the environment takes about $NEEDED_GB GB;" \
            "free some space or clone to a larger disk"
}

create() {
    local version
    version=$(version_of "$python")
    if [ "$(version_of "$VENV/bin/python")" != "$version" ] ||
        ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        [ ! -e "$VENV" ] || [ -f "$VENV/pyvenv.cfg" ] ||
            fail "$VENV exists and is not a virtual environment; move it away"
        "$python" -m venv --clear "$VENV" || fail "$python -m venv failed (see above)"
    fi
    rm -f "$STAMP"
    : >"$LOG"
}

# Run a command with its output in the log: step "text" command...
step() {
    local text=$1 began=$SECONDS ticker=
    shift
    echo "$text ..."
    if [ -t 1 ]; then
        while sleep 1 && kill -0 $$ 2>/dev/null; do printf '\r    %d s ' $((SECONDS - began)); done &
        ticker=$!
    fi
    local status=0
    "$@" >>"$LOG" 2>&1 </dev/null || status=$?
    if [ -n "$ticker" ]; then
        kill "$ticker" 2>/dev/null
        wait "$ticker" 2>/dev/null || true
        printf '\r'
    fi
    if [ "$status" -ne 0 ]; then
        tail -n 20 "$LOG" >&2
        fail "this step failed: $text (whole log: $LOG); once the cause is fixed, the same command continues"
    fi
    echo "    done in $((SECONDS - began)) s"
}

pip_install() {
    "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input \
        --constraint constraints.txt "$@"
}

# Install fairseq unless it is there: a wheel where one exists for this Python, else the source.  Without a compiler its
# setup.py skips the extensions in the same way as for its documentation.
install_fairseq() {
    if "$VENV/bin/python" -W ignore -c 'import fairseq.data.data_utils_fast' 2>/dev/null; then
        return
    elif pip_install --only-binary ve-fairseq ve-fairseq; then
        return
    elif compiles_extensions; then
        pip_install --no-build-isolation fairseq-fixed
    else
        READTHEDOCS=1 pip_install --no-build-isolation --no-cache-dir fairseq-fixed
    fi
}

everything_loads() {
    "$VENV/bin/python" -W ignore -c 'import torchvision, torchaudio, timm, sklearn, matplotlib, soundfile'
}

install() {
    step "[1/4] torch and build tools (6 GB on disk; 1 to 10 minutes)" \
        pip_install torch setuptools wheel Cython numpy
    step "[2/4] fairseq (compiled for 1 to 4 minutes where it has no wheel)" install_fairseq
    step "[3/4] everything else, and this project in editable form (1 to 3 minutes)" \
        pip_install --no-build-isolation --editable '.[dev,slurm]'
    step "[4/4] checking that everything loads" everything_loads
}

if is_current; then
    echo "make venv: $VENV is up to date"
    exit 0
fi

# The caller's Python and pip settings must not lead outside the environment.  With CUDA_HOME set,
# fairseq would compile CUDA kernels that nothing here uses.
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX CUDA_HOME
export PIP_USER=0 PIP_ROOT_USER_ACTION=ignore CC=${CC:-cc} CXX=${CXX:-c++}

choose_python
check_machine
echo "make venv: installing into $VENV with $("$python" --version 2>&1); log: $LOG"
create
install
fingerprint "$(version_of "$VENV/bin/python")" >"$STAMP.new"
mv "$STAMP.new" "$STAMP"
command -v "${CC%% *}" gcc clang >/dev/null ||
    echo "make venv: no C compiler was found, so ops run on PyTorch in place of C, and slower"
echo "make venv: $VENV is ready ($SECONDS s)"
