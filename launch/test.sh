#!/usr/bin/env bash
# Lint, types and tests, slow ones too.
# usage: bash launch/test.sh [arguments of pytest]
# Makes .venv on the first run. TEST_PROCESSES=N spreads the tests over N processes; JAX already
# uses every core, so this helps only where there are many.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in -h | --help)
    sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}"
    exit
    ;;
esac
source launch/setup_venv.sh
setup_venv '[test]'
python=.venv/bin/python
echo "ruff"
$python -m ruff check --quiet .
$python -m ruff format --check --quiet .
echo "mypy"
$python -m mypy --no-error-summary
echo "pytest"
$python -m pytest --numprocesses="${TEST_PROCESSES:-0}" "$@"
