#!/usr/bin/env bash
# Trains TCL on drawn scenes with the CLIP that ships with the package, judges both, shows masks.
# usage: bash launch/quickstart.sh [flags of python -m tcl_jax.main]
# Makes .venv on the first run, of the newest Python from 3.11 to 3.14 or of PYTHON=python3.13.
# Interrupt it with Ctrl-C and run it again to go on. GLIBC_TUNABLES='' leaves memory in small pages.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in -h | --help)
    sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}"
    exit
    ;;
esac
source launch/setup_venv.sh
setup_venv ''
workdir=runs/shapes
# XLA maps its buffers on a CPU anew every step: in huge pages it takes few faults for it.
export GLIBC_TUNABLES="${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}"
.venv/bin/python -m tcl_jax.main --config=configs/shapes.py --workdir="$workdir" "$@"
