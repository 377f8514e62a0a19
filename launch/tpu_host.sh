#!/usr/bin/env bash
# What launch/tpu_vm.sh runs on each host of a TPU, in the checkout that it has unpacked there.
# usage: bash tcl_jax/launch/tpu_host.sh install [BUCKET] | start [flags of main] | status | stop
# The log is ~/tcl_jax_main.log. What runs already is ended by start, after it has saved.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
log=~/tcl_jax_main.log pid_file=~/tcl_jax_main.pid code_file=~/tcl_jax_main.code
stopped_file=~/tcl_jax_main.stopped
cd "$root"

install() {
    local bucket="${1:-}"
    if ! .venv/bin/python --version >/dev/null 2>&1; then
        # The images come with Python 3.10; uv brings one that is supported.
        python3 -m pip install --quiet --user uv
        python3 -m uv venv --quiet --clear --seed --python=3.13 .venv
    fi
    # shellcheck source=launch/setup_venv.sh
    source launch/setup_venv.sh
    setup_venv '[tpu]'
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

# Whether a process that the file names (main, or what attends it) is there; a number may have gone to
# another program since the machine was started.
running() {
    local process processes=()
    [ ! -s "$pid_file" ] || read -ra processes <"$pid_file"
    for process in ${processes[@]+"${processes[@]}"}; do
        ! grep -qsE "tcl_jax.main|tpu_host.sh" "/proc/$process/cmdline" || return 0
    done
    return 1
}

tell_main() { kill "-$1" "$(cut -d' ' -f1 "$pid_file")" 2>/dev/null || true; }

# Lets main save and end; kills it after so many seconds.
end_main() {
    local seconds="$1"
    running || return 0
    tell_main TERM
    for ((i = 0; i < seconds * 5; i++)); do
        running || return 0
        sleep 0.2
    done
    tell_main KILL
    sleep 1
}

# Main ends with 0 when it was told to stop as when its training is done: the file tells them apart.
stop() {
    [ "$(cat "$code_file" 2>/dev/null)" = 0 ] || touch "$stopped_file"
    end_main 600
}

start() {
    # Other hosts may be gone, and then it cannot save.
    end_main 60
    rm -f "$code_file" "$pid_file" "$stopped_file"
    # Of a session of its own, so that it goes on when ssh ends.
    setsid nohup bash launch/tpu_host.sh attend "$@" </dev/null >>"$log" 2>&1 &
    for ((i = 0; i < 100; i++)); do
        [ ! -s "$pid_file" ] || return 0
        sleep 0.1
    done
    echo "error: main did not start; see $log" >&2
    return 1
}

# Runs main and notes how it ended. It ends with 0 also when it was told to end and has saved: where
# the machine goes down everything is told, this script too, and then the training is not done.
attend() {
    local main code=0 going_down=''
    # shellcheck source=launch/wait_for.sh
    source launch/wait_for.sh
    trap 'going_down=143' TERM HUP
    PYTHONUNBUFFERED=1 .venv/bin/python -m tcl_jax.main "$@" &
    main=$!
    echo "$main $$" >"$pid_file"
    wait_for "$main" || code=$?
    echo "${going_down:-$code}" >"$code_file"
}

status() {
    local how="is not running, and did not say how it ended" told=''
    if [ -s "$code_file" ]; then
        how="ended with code $(cat "$code_file")"
    elif running; then
        how="is running"
    fi
    [ ! -e "$stopped_file" ] || told="; it was told to stop"
    echo "main $how$told"
}

case "${1:-}" in
install | start | attend | status | stop) "$@" ;;
-h | --help) sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}" ;;
*)
    sed -n '3s/^# //p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
