# shellcheck shell=bash
# Sourced by scripts that hear signals while a command of theirs runs.
# usage: source launch/wait_for.sh; wait_for PID    returns the exit code of that child

wait_for() {
    local code=0
    wait "$1" || code=$?
    while kill -0 "$1" 2>/dev/null; do # a trap ends `wait`
        code=0
        wait "$1" || code=$?
    done
    return "$code"
}
