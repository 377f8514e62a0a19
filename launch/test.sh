#!/usr/bin/env bash
# Lint, types and tests, slow ones too.
# usage: bash launch/test.sh [arguments of pytest]
# Makes .venv on the first run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in -h | --help)
    sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"
    exit
    ;;
esac
source launch/setup_venv.sh
setup_venv '[test]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"
