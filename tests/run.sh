#!/bin/sh
# `make test`: installs the test requirements into .venv-test and runs every check.
set -eu
cd "$(dirname "$0")/.."
venv=${MEMCLI_TEST_VENV:-.venv-test}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet -r requirements-test.txt
"$venv/bin/pip" install --quiet --editable .
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
# One process per core, each with one thread: the tests are many and small. A file stays in one
# process, because its tests share what is costly to make; files begin in the order of conftest.py.
OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
