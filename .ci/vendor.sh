# Sourced by the tests of each vendor's stack. Its pins exclude those of all other tests, so it gets a virtual environment
# of its own, kept outside the tree: a fresh clone finds it again.
#
# `environment NAME` makes it from .ci/NAME-requirements.txt and the function `extras`, and sets `pytest`; where no
# Python is here that the stack is known to run on, it says so and ends the script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras() { :; } # what pip must install without its dependencies

environment() {
    local wanted=".ci/$1-requirements.txt" python="" candidate
    for candidate in "${PYTHON:-python3}" python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))' 2>/dev/null; then
            python="$candidate"
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "NOT RUN: $0. Its stack is known to run on Python 3.10 and 3.11, and neither is here."
        exit 0
    fi
    local key home venv
    key="$( (cat "$wanted" "$0"; "$python" -V) | sha256sum | cut -c1-16)"
    home="${XDG_CACHE_HOME:-$HOME/.cache}/langchain-accel-ci"
    mkdir -p "$home" 2>/dev/null && [ -w "$home" ] || home="$PWD/.cache"
    venv="$home/$1-$key"
    if [ ! -f "$venv/.ready" ]; then
        rm -rf "$venv"
        "$python" -m venv "$venv"
        pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
        "${pip[@]}" -r "$wanted"
        extras
        touch "$venv/.ready"
    fi
    export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    pytest=("$venv/bin/python" -m pytest -q -W "ignore::DeprecationWarning")
}
