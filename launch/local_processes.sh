#!/usr/bin/env bash
# Trains with N processes on this machine, as N machines would: to try a run on several hosts.
# usage: bash launch/local_processes.sh [--devices=D] [--dry-run] N [flags of python -m tcl_jax.main]
# D CPU devices for each process (as JAX finds them if not given; then set JAX_PLATFORMS=cpu on a
# machine with a GPU or TPU). Every line of the output begins with the number of its process. If
# one fails the others are stopped, and its exit code is the script's. Ctrl-C or SIGTERM lets all of
# them save and end; once more kills them. The same command goes on from the last checkpoint.
# --dry-run prints the commands. Python is $PYTHON, else that of .venv, else python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $1; see bash launch/local_processes.sh --help" >&2
    exit 2
}

devices='' dry_run=''
while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help)
        sed -n '2,8s/^# //p' "${BASH_SOURCE[0]}"
        exit
        ;;
    --devices=*)
        devices="${1#*=}"
        [[ "$devices" =~ ^[1-9][0-9]*$ ]] || fail "$1 is not a number of devices"
        ;;
    --dry-run) dry_run=1 ;;
    *) break ;;
    esac
    shift
done
[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || fail "the first argument is the number of processes, not '${1:-}'"
count="$1"
shift

python="${PYTHON:-.venv/bin/python}"
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
command -v "$python" >/dev/null || fail "there is no $python; run bash launch/quickstart.sh once, or set PYTHON"
if [ -n "$devices" ]; then
    export JAX_PLATFORMS=cpu
    export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
fi

port="$("$python" -c 'import socket
with socket.socket() as free:
    free.bind(("localhost", 0))
    print(free.getsockname()[1])')"
command=("$python" -m tcl_jax.main "--coordinator=localhost:$port" "--num_processes=$count")
if [ -n "$dry_run" ]; then
    for ((i = 0; i < count; i++)); do
        [ -z "$devices" ] || printf 'JAX_PLATFORMS=cpu XLA_FLAGS=%q ' "$XLA_FLAGS"
        printf '%q ' "${command[@]}" "--process_id=$i" "$@"
        echo
    done
    exit
fi

# With a group of its own no process gets Ctrl-C from the terminal besides the one passed on: the
# second would end it before it has saved.
set -m
running=() writers=()
for ((i = 0; i < count; i++)); do
    # The writer outlives the signals that its process answers with last lines.
    exec {lines}> >(trap '' INT TERM HUP && exec sed -u "s/^/[$i] /")
    writers+=("$!")
    "${command[@]}" "--process_id=$i" "$@" </dev/null >&"$lines" 2>&1 &
    running[i]=$!
    echo "this is process ${running[i]}" >&"$lines"
    exec {lines}>&-
done
set +m

tell() {
    kill "-$1" "${running[@]}" 2>/dev/null || true
}
signal=''
trap 'tell "${signal:-TERM}"; signal=KILL' INT TERM HUP

code=0
while [ "${#running[@]}" -gt 0 ]; do
    for i in "${!running[@]}"; do
        kill -0 "${running[i]}" 2>/dev/null && continue
        ended=0
        wait "${running[i]}" 2>/dev/null || ended=$?
        unset "running[i]"
        if [ "$ended" != 0 ] && [ "$code" = 0 ]; then
            code="$ended"
            echo "error: process $i ended with code $code; stopping the others" >&2
            [ "${#running[@]}" = 0 ] || tell TERM
            # They may wait for its part of a step for long, and cannot save without it.
            deadline=$((SECONDS + 5))
        fi
    done
    if [ "$code" != 0 ] && [ "${#running[@]}" -gt 0 ] && [ "$SECONDS" -ge "$deadline" ]; then
        tell KILL
    fi
    sleep 0.1 || true # Ctrl-C ends it, too
done
wait "${writers[@]}" 2>/dev/null || true
exit "$code"
