#!/usr/bin/env bash
# Plays gcloud for a TPU of two hosts, which are folders: $FAKE/host0 and $FAKE/host1.
# $FAKE/calls gets the arguments of every call. $FAKE/lives has a line for each TPU that is made: the
# answers to describing it, in turn, the last for good; DENIED is a failure of gcloud. $FAKE/refusals
# has a line for each request: empty where it is granted; slow ones last until Ctrl-C. $FAKE/main.HOST has a line for each start of
# main there: `wait` for SIGTERM or the code to end with. $FAKE/silent.HOST has a line for each time
# that the host does not answer when it is asked for its status.
set -euo pipefail
call="$(printf '%q ' "$@")"
echo "$call" >>"$FAKE/calls" # at once: there may be two at a time
argument() {
    local name="$1" given
    shift
    for given in "$@"; do
        [ "${given%%=*}" != "$name" ] || echo "${given#*=}"
    done
}
pop() {
    local first
    first="$(head -1 "$1" 2>/dev/null)"
    if [ "${2:-}" = keep ] && [ "$(wc -l <"$1")" -le 1 ]; then
        echo "$first"
        return
    fi
    [ ! -e "$1" ] || sed -i 1d "$1"
    echo "$first"
}
vanish() {
    local host process
    for host in "$FAKE"/host?; do
        for process in $(cat "$host/tcl_jax_main.pid" 2>/dev/null || true); do
            kill -KILL "$process" 2>/dev/null || true
        done
        rm -rf "$host"
    done
    rm -f "$FAKE/answers"
}
case "$*" in
'config get-value core/project') echo "${FAKE_PROJECT-project}" ;;
'config get-value compute/zone') echo "${FAKE_ZONE-zone}" ;;
*' describe '*)
    if [ ! -e "$FAKE/answers" ]; then
        echo 'ERROR: (gcloud) NOT_FOUND: Resource was not found' >&2
        exit 1
    elif [[ "$*" == *' tpu-vm '* && -e "$FAKE/queued" ]]; then
        echo READY
    else
        answer="$(pop "$FAKE/answers" keep)"
        if [ "$answer" = DENIED ]; then
            echo 'ERROR: (gcloud) PERMISSION_DENIED: you may not' >&2
            exit 1
        fi
        echo "$answer"
    fi
    ;;
*' create '*)
    refusal="$(pop "$FAKE/refusals")"
    if [ "$refusal" = slow ]; then
        trap 'echo "Command killed by keyboard interrupt" >&2; exit 1' INT
        echo 'Create request issued' >&2
        sleep 60
    elif [ -n "$refusal" ]; then
        echo 'ERROR: (gcloud) there is no more capacity in the zone' >&2
        exit 1
    fi
    [[ "$*" != *queued-resources* ]] || touch "$FAKE/queued"
    pop "$FAKE/lives" | tr ' ' '\n' >"$FAKE/answers"
    mkdir "$FAKE/host0" "$FAKE/host1"
    ;;
*' delete '*) vanish ;;
*' scp '*)
    for host in "$FAKE"/host?; do
        cp "$5" "$host/${6#*:}"
    done
    ;;
*' ssh '*)
    worker="$(argument --worker "$@")"
    for host in "$FAKE"/host?; do
        [ "$worker" = all ] || [ "$host" = "$FAKE/host$worker" ] || continue
        command="$(argument --command "$@")"
        if [[ "$command" == *'tpu_host.sh status' && -s "$FAKE/silent.$(basename "$host")" ]]; then
            pop "$FAKE/silent.$(basename "$host")" >/dev/null
            echo 'ERROR: (gcloud) ssh: connect to host: Connection timed out' >&2
            unreachable=1
            continue
        fi
        if [[ "$command" == *'tpu_host.sh install'* ]]; then
            # Python and packages are not to be had; nor is it the last commit that is tested.
            command="${command%&&*}"
            mkdir -p "$host/tcl_jax/.venv/bin"
            cp "$FAKE/main" "$host/tcl_jax/.venv/bin/python"
            (cd "$host" && HOME="$host" bash -c "$command")
            cp "$CHECKOUT"/launch/*.sh "$host/tcl_jax/launch/"
        else
            (cd "$host" && HOME="$host" bash -c "$command")
        fi
    done
    exit "${unreachable:-0}"
    ;;
*)
    echo "fake gcloud: $*" >&2
    exit 9
    ;;
esac
