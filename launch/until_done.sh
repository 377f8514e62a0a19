#!/usr/bin/env bash
# Runs a command and passes SIGTERM and SIGINT on to it. If one came, it ends with code 143 even where
# the command saved and ended with 0, so that Kubernetes does not take what is to go on for done.
# usage: bash launch/until_done.sh COMMAND [arguments]
set -euo pipefail
case "${1:-}" in '' | -h | --help)
    sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"
    exit
    ;;
esac
# shellcheck source=launch/wait_for.sh
source "$(dirname "${BASH_SOURCE[0]}")/wait_for.sh"
signalled='' child=''
trap '[ -n "$signalled" ] || [ -z "$child" ] || kill -TERM "$child"; signalled=143' TERM INT
"$@" &
child=$!
[ -z "$signalled" ] || kill -TERM "$child"
code=0
wait_for "$child" || code=$?
[ "$code" != 0 ] || code="${signalled:-0}"
exit "$code"
