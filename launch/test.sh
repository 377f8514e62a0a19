#!/usr/bin/env bash
# Lint, types and tests, slow ones too.
# usage: bash launch/test.sh [arguments of pytest]
# Makes .venv on the first run, of the newest Python from 3.11 to 3.14 or of PYTHON=python3.13.
# TEST_PROCESSES=N spreads the tests over N processes, two if not given; 0 is none but this one. CI
# or ORACLE=1 installs PyTorch for the CPU, against which some tests compare, and CI Chromium, which
# shows the web page; without them those tests are skipped. GLIBC_TUNABLES='' leaves memory in small
# pages, as in launch/quickstart.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in -h | --help)
    sed -n '2,8s/^# //p' "${BASH_SOURCE[0]}"
    exit
    ;;
esac
source launch/setup_venv.sh
setup_venv '[test]'
if [ -n "${CI:-}" ] || [ "${ORACLE:-}" = 1 ]; then
    setup_oracle
fi
if [ -n "${CI:-}" ]; then
    setup_browser
fi
python=.venv/bin/python
echo "ruff"
$python -m ruff check --quiet .
$python -m ruff format --check --quiet .
echo "shellcheck"
.venv/bin/shellcheck --external-sources launch/*.sh launch/*.sbatch tests/launch/*.sh .ci/run
echo "mypy and pytest"
# Beside the tests, whose processes do not keep every core busy while they start and end.
errors="$(mktemp)"
$python -m mypy --no-error-summary >"$errors" 2>&1 &
types=$!
trap 'kill "$types" 2>/dev/null || true; rm -f "$errors"' EXIT
code=0
export GLIBC_TUNABLES="${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}"
# A file stays in one process: its tests share what they make and what is compiled.
$python -m pytest --numprocesses="${TEST_PROCESSES:-2}" --dist=loadfile \
    --no-loadscope-reorder "$@" || code=$?
if ! wait "$types"; then
    echo "mypy:"
    cat "$errors"
    code=1
fi
exit "$code"
