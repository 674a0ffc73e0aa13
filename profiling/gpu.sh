#!/usr/bin/env bash
# Everything that docs/performance.md asks a GPU for, in at most eight minutes:
#
#     profiling/gpu.sh [OUTPUT] [--tiny]
#
# Sections are written to OUTPUT (default: outputs/gpu) as they complete. A group of sections that outlasts its limit is
# stopped and the next one begins; started again, the script measures what is missing. LIMIT is the bound of the whole
# run in seconds, PYTHON the interpreter. With --tiny all sizes are small, on a machine without a GPU, too.
#
# Packages that the machine lacks and cannot fetch are installed from a folder `wheels`, if there is one:
#     pip wheel --no-deps --wheel-dir wheels av hydra-core omegaconf antlr4-python3-runtime iopath portalocker tqdm
#     SAM2_BUILD_CUDA=0 pip wheel --no-deps --no-build-isolation --wheel-dir wheels sam2
# Without av nothing is decoded, without sam2 nothing is compared; both are said in the output.
set -u

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "${1:-}" = --tiny ] && set -- outputs/gpu --tiny
output=${1:-outputs/gpu}
tiny=${2:-}
python=${PYTHON:-python}
limit=${LIMIT:-480}

# The folder of this file is the package `sama`, whatever its name
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
ln -s "$PWD" "$packages/sama"
export PYTHONPATH="$packages${PYTHONPATH:+:$PYTHONPATH}"

if [ -d wheels ]; then
    "$python" -m pip install --quiet --no-index --no-deps wheels/*.whl
fi

failed=0
# Seconds, size of the language model, and sections
while read -r most size sections; do
    left=$((limit - SECONDS))
    if [ "$left" -le 0 ]; then
        echo "not measured, the time is up: $sections ($size)"
        failed=1
        continue
    fi
    # shellcheck disable=SC2086 # several sections, and nothing where $tiny is empty
    timeout $((most < left ? most : left)) "$python" profiling/gpu.py --output "$output" --size "$size" $tiny \
        --section $sections < /dev/null
    status=$?
    if [ "$status" -ne 0 ]; then
        echo "incomplete, status $status (124: stopped after its limit): $sections ($size)"
        failed=1
    fi
done << 'GROUPS'
140 1b tracking turns training
110 1b tracking_compiled
80 4b turns training
65 1b sam2
85 1b sam2_compiled
GROUPS
exit "$failed"
