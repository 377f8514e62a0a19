#!/usr/bin/env bash
# What launch/tpu_vm.sh runs on each host of a TPU, in the home folder of its user there.
# usage: bash tcl_jax/launch/tpu_host.sh install [BUCKET] | start [flags of main] | status | stop
# The log is tcl_jax_main.log. What runs already is ended by start, after it has saved.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
log=tcl_jax_main.log pid_file=tcl_jax_main.pid code_file=tcl_jax_main.code

install() {
    local bucket="${1:-}"
    cd "$root"
    if ! .venv/bin/python --version >/dev/null 2>&1; then
        # The images come with Python 3.10; uv brings one that is supported.
        python3 -m pip install --quiet --user uv
        python3 -m uv venv --quiet --seed --python=3.12 .venv
    fi
    # shellcheck source=launch/setup_venv.sh
    source launch/setup_venv.sh
    setup_venv '[tpu]'
    cd ~
    if [ -n "$bucket" ] && ! mountpoint -q bucket; then
        command -v gcsfuse >/dev/null || install_gcsfuse
        mkdir -p bucket
        gcsfuse --implicit-dirs "$bucket" bucket
    fi
}

install_gcsfuse() {
    local key=/usr/share/keyrings/cloud.google.asc site=https://packages.cloud.google.com/apt
    curl -fsS "$site/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $site gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get -qq update
    sudo apt-get -qq install -y gcsfuse
}

running() { [ -e "$pid_file" ] && kill -0 "$(cat "$pid_file")" 2>/dev/null; }

stop() {
    local seconds="${1:-600}"
    running || return 0
    kill -TERM "$(cat "$pid_file")" 2>/dev/null || true
    for ((i = 0; i < seconds * 5; i++)); do
        running || return 0
        sleep 0.2
    done
    kill -KILL "$(cat "$pid_file")" 2>/dev/null || true
}

start() {
    # Others may be gone, and then it cannot save.
    stop 60
    rm -f "$code_file" "$pid_file"
    # Of a session of its own, so that it goes on when ssh ends.
    setsid nohup bash "$root/launch/tpu_host.sh" attend "$@" </dev/null >>"$log" 2>&1 &
    for ((i = 0; i < 50; i++)); do
        [ ! -e "$pid_file" ] || return 0
        sleep 0.1
    done
    echo "error: main did not start; see $log" >&2
    return 1
}

# Runs main and notes how it ended. main ends with 0 also when it was told to end and has saved; where
# the machine goes down everything is told, this script too, and then it is not done.
attend() {
    local going_down='' code=0
    trap 'going_down=143' TERM HUP
    PYTHONPATH="$root" PYTHONUNBUFFERED=1 "$root/.venv/bin/python" -m tcl_jax.main "$@" &
    echo "$!" >"$pid_file"
    wait "$!" || code=$?
    while running; do
        code=0
        wait "$(cat "$pid_file")" || code=$?
    done
    echo "${going_down:-$code}" >"$code_file"
}

status() {
    if running; then
        echo "main is running"
    elif [ -e "$code_file" ]; then
        echo "main ended with code $(cat "$code_file")"
    else
        echo "main was not started"
    fi
}

"$@"
