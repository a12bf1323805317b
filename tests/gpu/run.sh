#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one command on a bare CUDA machine:
#
#   tests/gpu/run.sh [--dry-run] [--output DIR] [--keep-venv]
#
# Makes a virtual environment, installs memcli with its GPU extras and what the comparison needs,
# runs the tests marked `gpu` (a skip is a failure), measures, and writes report.md and report.json
# into DIR (default: gpu-report). The exit code is that of the tests.
#
# --dry-run prints the commands instead of running them, and checks what can be checked without a
# GPU: that every file they name is there.
#
# PYTHON names the interpreter (default: python3). The driver must be installed; CUDA and cuDNN come
# with the packages.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
output=gpu-report
dry_run=false
keep_venv=false

usage() {
    sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
}

while [ "$#" -gt 0 ]; do
    case "$1" in
        --dry-run) dry_run=true ;;
        --keep-venv) keep_venv=true ;;
        --output)
            [ "$#" -ge 2 ] || { echo "error: --output needs a folder" >&2; exit 2; }
            output=$2
            shift
            ;;
        -h | --help) usage; exit 0 ;;
        *) echo "error: unknown option $1" >&2; usage >&2; exit 2 ;;
    esac
    shift
done

run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    if [ "$dry_run" = false ]; then
        "$@"
    fi
}

for needed in pyproject.toml tests/gpu/benchmark.py tests/gpu/report.py tests/gpu/conftest.py; do
    [ -f "$root/$needed" ] || { echo "error: $needed is missing in $root" >&2; exit 2; }
done
if [ "$dry_run" = false ] && ! command -v nvidia-smi >/dev/null; then
    echo "error: no nvidia-smi: this machine has no NVIDIA driver (--dry-run needs none)" >&2
    exit 3
fi

case "$output" in
    /*) ;;
    *) output=$PWD/$output ;;
esac
venv=$output/venv
python=$venv/bin/python
export PYTHONPATH=$root/tests
export MEMCLI_HOME=$output/home

run mkdir -p "$output"
run "${PYTHON:-python3}" -m venv "$venv"
run "$python" -m pip install --quiet --upgrade pip
run "$python" -m pip install --quiet --editable "${root}[gpu,tensorrt-rtx,train,dev]"
# CUDA and cuDNN of the version that onnxruntime-gpu was built for.
run "$python" -m pip install --quiet 'onnxruntime-gpu[cuda,cudnn]'
cd "$root"
run nvidia-smi
run "$python" -m memcli doctor

status=0
run env MEMCLI_REQUIRE_GPU=1 "$python" -m pytest -m gpu tests/gpu \
    --junit-xml "$output/tests.xml" || status=$?
run "$python" -m tests.gpu.benchmark --output "$output/benchmark.json" \
    || echo "the benchmark did not finish" >&2
run "$python" -m tests.gpu.report "$output"
if [ "$keep_venv" = false ]; then
    run rm -rf -- "$venv"
fi
echo "report: $output/report.md"
exit "$status"
