#!/usr/bin/env bash
# Measures what README's speed table says of a GPU: a training step with its memory, MFU and kinds of
# operations, masks, an evaluation, rematerialisation, and the official PyTorch code beside it.
# usage: bash launch/measure_gpu.sh [flags] [FOLDER]
# Writes PART.json and PART.txt into FOLDER ($OUT, or measured/, if not given), the most important
# part first, each figure as soon as it is known. What --seconds do not reach is left out; compiled
# programs are kept in .cache/gpu, so that the same command goes further when it is run again.
# --seconds=N        time for all parts together (default 350)
# --parts=LIST       of train,masks,trace,against_train,against_masks,evaluate,remat_blocks,
#                    remat_activations; the default is all, --against_* where --against is given
# --against=FOLDER --against_python=FILE   a checkout of the official code, and the Python for it
# --wheels=FOLDER    wheels from which missing packages are taken; nothing is downloaded
# --config=FILE --dtype=NAME --batch_sizes=LIST --window=N   of configs/tcl.py, bfloat16, 64,256, 448
# Needs a Python from 3.11 with jax[cuda] from 0.10 ($PYTHON, else that of .venv, else python3), and
# says which packages are missing. JAX_PLATFORMS=cpu tries it without a GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $1; see bash launch/measure_gpu.sh --help" >&2
    exit 2
}

seconds=350 wheels='' against='' against_python=python3 config=configs/tcl.py dtype=bfloat16
batch_sizes=64,256 window=448 out="${OUT:-measured}"
all=train,masks,trace,against_train,against_masks,evaluate,remat_blocks,remat_activations
parts="$all"
while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help)
        sed -n '2,17s/^# //p' "${BASH_SOURCE[0]}"
        exit
        ;;
    --seconds=* | --parts=* | --wheels=* | --against=* | --against_python=* | --config=* | \
        --dtype=* | --batch_sizes=* | --window=*)
        name="${1%%=*}"
        printf -v "${name#--}" %s "${1#*=}"
        ;;
    -*) fail "there is no flag $1" ;;
    *) out="$1" ;;
    esac
    shift
done
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || fail "--seconds=$seconds is not a number of seconds"
for name in ${parts//,/ }; do
    [[ ",$all," = *",$name,"* ]] || fail "--parts=$parts: there is no part $name, but $all"
done
[ -z "$wheels" ] || [ -d "$wheels" ] || fail "--wheels=$wheels is no folder"

python="${PYTHON:-.venv/bin/python}"
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
command -v "$python" >/dev/null || fail "there is no $python; set PYTHON"
mkdir -p "$out"
load="$(cut -d ' ' -f 1 /proc/loadavg)" # later it is this script's own
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/gpu}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# By the name that is imported and that of the package.
find_missing() {
    "$python" -c '
import importlib.util, sys
if sys.version_info < (3, 11):
    sys.exit("error: it is Python " + sys.version.split()[0] + ", and 3.11 is the oldest that does")
needed = dict(
    jax="jax", flax="flax", optax="optax", orbax="orbax-checkpoint", jaxtyping="jaxtyping",
    ml_collections="ml_collections", yaml="PyYAML", absl="absl-py", safetensors="safetensors",
    tqdm="tqdm",
)
if "evaluate" in sys.argv[1].split(","):
    needed |= dict(PIL="Pillow", cv2="opencv-python-headless")
def is_missing(name):
    try:
        return importlib.util.find_spec(name) is None
    except ValueError:
        return True
print(*(package for name, package in needed.items() if is_missing(name)))' "$parts"
}
missing="$(find_missing)"
if [ -n "$missing" ] && [ -n "$wheels" ]; then
    packages="$(mktemp -d)"
    trap 'rm -rf "$packages"' EXIT
    # shellcheck disable=SC2086
    "$python" -m pip install --quiet --no-index --no-deps --find-links="$wheels" \
        --target="$packages" $missing || fail "--wheels=$wheels does not have all of: $missing"
    export PYTHONPATH="$PYTHONPATH:$packages"
    missing="$(find_missing)"
fi
if [ -n "$missing" ]; then
    echo "missing for $python: $missing" >&2
    echo "where there is internet: pip download --no-deps --dest wheels $missing" >&2
    fail "packages are missing; bring the wheels here and give --wheels=wheels"
fi

failed='' report=''
note() {
    report+="$1"$'\n'
    echo "$1"
}

# part NAME ARGUMENTS: one process of bench; what it has written counts, however it ends.
part() {
    local name="$1" left=$((seconds - SECONDS)) start=$SECONDS code=0
    shift
    [[ ",$parts," = *",$name,"* ]] || return 0
    rm -f "$out/$name.json" "$out/$name.txt"
    if [ "$left" -lt 10 ]; then
        note "$name: skipped, $seconds s are over; run it again"
        return
    fi
    echo "== $name, $left s left"
    timeout --kill-after=5 "$left" "$python" -m tcl_jax.bench "$@" --config="$config" \
        --dtype="$dtype" --load="$load" --json="$out/$name.json" 2>&1 | tee "$out/$name.txt" || code=${PIPESTATUS[0]}
    case "$code" in
    0) note "$name: done in $((SECONDS - start)) s" ;;
    124 | 137) note "$name: stopped, $seconds s are over; run it again for the rest" ;;
    *)
        note "$name: failed with exit code $code, see $out/$name.txt"
        failed=1
        ;;
    esac
}

SECONDS=0
step=(train --rounds=3 --steps=5 --warmup=2)
masks=(masks --rounds=3 --calls=5 --warmup=2 --windows="$window" "--classes=20,150")
first="${batch_sizes%%,*}"
official=(--against="$against" --against_python="$against_python")
part train "${step[@]}" --batch_sizes="$batch_sizes"
part masks "${masks[@]}"
part trace "${step[@]}" --batch_sizes="$first" --phases=2 --trace
if [ -n "$against" ]; then
    part against_train "${step[@]}" --batch_sizes="$first" "${official[@]}"
    part against_masks "${masks[@]}" "${official[@]}"
fi
part evaluate evaluate --classes=20,150 --images=64
for kind in blocks activations; do
    part "remat_$kind" "${step[@]}" --batch_sizes="$batch_sizes" --config.train.remat="$kind"
done
echo
printf %s "$report" | tee "$out/parts.txt"
[ -z "$failed" ]
