#!/usr/bin/env bash
# Trains on a Cloud TPU VM or on all hosts of a pod slice, and goes on after pre-emption.
# usage: bash launch/tpu_vm.sh COMMAND --name=NAME [options] [-- flags of python -m tcl_jax.main]
#   run      all that follows up to train, then watches: what was pre-empted is made again and the
#            same command started, which goes on from its last checkpoint; ends with the training,
#            or with code 143 after stop, and then deletes nothing
#   create   makes the TPU and waits for it; one that is there already is kept
#   install  brings this commit (git archive; so it works without access to the repository) to
#            every host and installs it there
#   train    starts main on every host, where it goes on when the connection ends
#   logs     follows the log of a host (--worker=0)
#   status   state of the TPU and of main on each host
#   stop     lets main save and end
#   delete   deletes the TPU, and with it the disks of its hosts
# options: --zone=ZONE and --project=PROJECT (else those of gcloud config), --type=v5litepod-16,
#   --runtime=v2-alpha-tpuv5-lite (v6e: v2-alpha-tpuv6e, v5p: v2-alpha-tpuv5, v4:
#   tpu-ubuntu2204-base), --spot, --queued (by a queued resource; give it to every command),
#   --bucket=BUCKET (Cloud Storage mounted as the folder bucket on each host), --internal-ip,
#   --delete-after (run: delete the TPU when the training has ended well), --poll=60 (seconds),
#   --restarts=3 (run: so many times a training that fails is started again, and a TPU that cannot
#   be had is asked for again; one that was ready before is asked for until it is there, or Ctrl-C),
#   --dry-run (print the commands and run none)
#
#   bash launch/tpu_vm.sh run --name=tcl --zone=us-west4-a --spot --queued --bucket=my-runs -- \
#       --config=configs/tcl.py --workdir=bucket/tcl
#
# Relative paths begin at the checkout on a host (~/tcl_jax). The work directory must be one folder
# that all hosts share and that outlives them: in the bucket (made with
# --enable-hierarchical-namespace, since a checkpoint is renamed into place) or on a Filestore share;
# gs:// itself is not understood by --workdir. Every host reads its own part of the data, which all
# of them have to see. A spot TPU ends half a minute after its notice: what is newer than the last
# checkpoint may be lost, so keep train.checkpoint_every small.
# Tested with a stand-in for gcloud (tests/launch), not yet on Google Cloud.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $1" >&2
    exit "${2:-2}"
}

say() { echo "$(date +%H:%M:%S) $1" >&2; }

# gcloud and its ssh may answer Ctrl-C with a failure like any other, which would be tried again.
trap 'exit 130' INT

command='' name='' zone='' project='' type=v5litepod-16 runtime=v2-alpha-tpuv5-lite
spot='' queued='' bucket='' internal_ip='' delete_after='' poll=60 restarts=3 worker=0 dry_run=''
while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help)
        sed -n '2,37s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit
        ;;
    --)
        shift
        break
        ;;
    --name=* | --zone=* | --project=* | --type=* | --runtime=* | --bucket=* | --poll=* | \
        --restarts=* | --worker=*)
        option="${1%%=*}"
        printf -v "${option#--}" %s "${1#*=}"
        ;;
    --spot | --queued | --internal-ip | --delete-after | --dry-run)
        option="${1#--}"
        printf -v "${option//-/_}" 1
        ;;
    -*) fail "$1 is no option of this script (those of main come after --); see --help" ;;
    *)
        [ -z "$command" ] || fail "two commands, $command and $1; flags of main come after --"
        command="$1"
        ;;
    esac
    shift
done
flags=("$@")

case "$command" in
run | create | install | train | logs | status | stop | delete) ;;
'') fail "no command; one of run, create, install, train, logs, status, stop, delete, see --help" ;;
*) fail "$command is no command; see bash launch/tpu_vm.sh --help" ;;
esac
[[ "$name" =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
    fail "--name=NAME is needed: lower case letters, digits and -, not '$name'"
[[ "$poll" =~ ^[0-9]+$ && "$restarts" =~ ^[0-9]+$ ]] || fail "--poll and --restarts are numbers"
case "$command" in
run | train)
    [[ " ${flags[*]} " == *" --workdir="* && " ${flags[*]} " == *" --config="* ]] ||
        fail "the flags of main are missing: $command ... -- --config=FILE --workdir=FOLDER"
    [[ " ${flags[*]} " != *" --workdir=gs://"* ]] ||
        fail "--workdir cannot be gs://...: give --bucket=BUCKET, and --workdir=bucket/FOLDER"
    ;;
esac
if [ -z "$dry_run" ]; then
    command -v gcloud >/dev/null ||
        fail "gcloud is not on PATH; install the Google Cloud CLI and run gcloud init"
    [ -n "$project" ] || project="$(gcloud config get-value core/project 2>/dev/null)"
    [ -n "$zone" ] || zone="$(gcloud config get-value compute/zone 2>/dev/null)"
fi
[ -n "$project" ] && [ "$project" != '(unset)' ] ||
    fail "no project: give --project=PROJECT, or run gcloud config set project PROJECT"
[ -n "$zone" ] && [ "$zone" != '(unset)' ] ||
    fail "no zone: give --zone=ZONE, or run gcloud config set compute/zone ZONE"
where=("--zone=$zone" "--project=$project")

# Runs a command, or prints it so that it can be pasted into a shell.
try() {
    if [ -n "$dry_run" ]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

nodes() { try gcloud compute tpus tpu-vm "$@" "${where[@]}"; }
requests() { try gcloud compute tpus queued-resources "$@" "${where[@]}"; }

# On every host, in the unpacked commit; the command is one line for its shell.
on_hosts() {
    nodes ssh "$name" --worker="${2:-all}" ${internal_ip:+--internal-ip} --command="$1"
}

# Prints what describing something says, or ABSENT; ends the script if gcloud fails otherwise.
described() {
    local output errors code=0
    errors="$(mktemp)"
    if output="$("$@" 2>"$errors")"; then
        echo "${output:-UNKNOWN}"
    elif grep -qiE 'not[_ ]found' "$errors"; then
        echo ABSENT
    else
        cat "$errors" >&2
        code=1
    fi
    rm "$errors"
    return "$code"
}

# In one word: READY, WAITING (it may become ready by itself), GONE (it never will), ABSENT.
state() {
    local request=ABSENT node
    if [ -n "$queued" ]; then
        request="$(described gcloud compute tpus queued-resources describe "$name" \
            "--format=value(state.state)" "${where[@]}")" || return
        case "$request" in
        ABSENT | ACTIVE) ;;
        FAILED | SUSPENDING | SUSPENDED | DELETING)
            echo GONE
            return
            ;;
        *)
            echo WAITING
            return
            ;;
        esac
    fi
    node="$(described gcloud compute tpus tpu-vm describe "$name" "--format=value(state)" \
        "${where[@]}")" || return
    case "$node" in
    READY) echo READY ;;
    PREEMPTED | TERMINATED | STOPPED | STOPPING | DELETING | HIDING | HIDDEN) echo GONE ;;
    ABSENT) if [ "$request" = ACTIVE ]; then echo GONE; else echo ABSENT; fi ;;
    *) echo WAITING ;;
    esac
}

delete() {
    if [ -n "$queued" ]; then
        requests delete "$name" --force --quiet
    else
        nodes delete "$name" --quiet
    fi
}

request() {
    local options=("--accelerator-type=$type" ${spot:+--spot} ${internal_ip:+--internal-ips})
    # Hosts read and write the bucket in the name of their service account.
    options+=(--scopes=https://www.googleapis.com/auth/cloud-platform)
    if [ -n "$queued" ]; then
        requests create "$name" "--node-id=$name" "--runtime-version=$runtime" "${options[@]}"
    else
        nodes create "$name" "--version=$runtime" "${options[@]}"
    fi
}

was_ready=''
create() {
    local now attempt=0
    if [ -n "$dry_run" ]; then
        request
        return
    fi
    while :; do
        now="$(state)" || [ -n "$was_ready" ] ||
            fail "gcloud could not say how $name is; its message is above" 1
        case "$now" in
        READY)
            was_ready=1
            say "$name is ready"
            return
            ;;
        WAITING) say "$name is not ready yet; asking again in $poll s" ;;
        GONE)
            say "$name was pre-empted, stopped or could not be had; deleting what is left of it"
            delete || say "it could not be deleted yet"
            ;;
        ABSENT)
            say "making $name: $type${spot:+, spot} in $zone"
            if request; then
                attempt=0
                continue
            fi
            attempt=$((attempt + 1))
            # There may be none of this type now, and some later; another mistake stays one.
            [ -n "$was_ready" ] || { [ "$command" = run ] && [ "$attempt" -le "$restarts" ]; } ||
                fail "$name could not be made; gcloud's message is above" 1
            say "$name could not be made; trying again in $poll s"
            ;;
        *) say "gcloud could not say how $name is; asking again in $poll s" ;;
        esac
        sleep "$poll"
    done
}

install() {
    local archive=tcl_jax.tar.gz commit folder
    commit="$(git rev-parse --short HEAD)" || return
    git diff --quiet HEAD -- || say "what is not committed is left out: installing $commit"
    if [ -z "$dry_run" ]; then
        folder="$(mktemp -d)" || return
        archive="$folder/$archive"
    fi
    {
        try git archive --format=tar.gz -1 "--output=$archive" HEAD . ':!tests' &&
            nodes scp "$archive" "$name:tcl_jax.tar.gz" --worker=all \
                ${internal_ip:+--internal-ip} &&
            on_hosts "mkdir -p tcl_jax && tar -xzf tcl_jax.tar.gz -C tcl_jax && \
bash tcl_jax/launch/tpu_host.sh install $bucket"
    } || return
    [ -n "$dry_run" ] || rm -r "$folder"
}

train() {
    local quoted
    printf -v quoted ' %q' "${flags[@]}"
    on_hosts "bash tcl_jax/launch/tpu_host.sh start$quoted"
}

# In one word, of all hosts together: RUNNING, STOPPED (by hand), DONE, FAILED (code in the second
# word), UNKNOWN. ssh fails if a host does not answer, and then those that do cannot say that the
# training is done.
progress() {
    local told failed silent=''
    told="$(on_hosts "bash tcl_jax/launch/tpu_host.sh status" 2>/dev/null)" || silent=1
    failed="$(sed -n 's/^main ended with code \([1-9][0-9]*\)$/\1/p' <<<"$told" | sort -n | head -1)"
    if grep -q '; it was told to stop$' <<<"$told"; then
        if grep -q '^main is running' <<<"$told"; then echo RUNNING; else echo STOPPED; fi
    elif [ -n "$failed" ]; then
        echo "FAILED $failed"
    elif grep -q '^main is not running' <<<"$told"; then
        echo "FAILED 137" # killed with what attended it
    elif grep -q '^main is running$' <<<"$told"; then
        echo RUNNING
    elif [ -z "$silent" ] && grep -q '^main ended with code 0$' <<<"$told"; then
        echo DONE
    else
        echo UNKNOWN
    fi
}

run() {
    local now outcome failures=0
    while :; do
        create
        if ! { install && train; }; then
            [ -z "$dry_run" ] || fail "not all commands could be told; the message is above" 1
            now="$(state)" || now=UNKNOWN
            failures=$((failures + 1))
            [ "$now" = GONE ] || [ "$failures" -le "$restarts" ] ||
                fail "main could not be installed and started; the messages are above" 1
            sleep "$poll"
            continue
        fi
        [ -z "$dry_run" ] || return 0
        say "main is running; follow it with: bash launch/tpu_vm.sh logs --name=$name ${where[*]}"
        while :; do
            sleep "$poll"
            outcome="$(progress)"
            if [ "$outcome" = STOPPED ]; then
                say "the training was stopped, and $name is kept; to go on, give this command again"
                return 143
            fi
            # Asked for after the hosts, so that a TPU that is going is not taken for one whose
            # training has ended; a gcloud that fails is asked again.
            now="$(state)" || continue
            if [ "$now" != READY ]; then
                say "$name is gone; making it again"
                break
            fi
            case "$outcome" in
            DONE)
                say "the training has ended"
                [ -z "$delete_after" ] || delete
                return
                ;;
            'FAILED 2') fail "main refused its input; see bash launch/tpu_vm.sh logs" ;;
            FAILED*)
                failures=$((failures + 1))
                [ "$failures" -le "$restarts" ] ||
                    fail "main failed $failures times; see bash launch/tpu_vm.sh logs" 1
                say "main failed on a host (code ${outcome#* }); starting it again on all"
                break
                ;;
            esac
        done
    done
}

status() {
    if [ -n "$dry_run" ]; then
        nodes describe "$name" "--format=value(state)"
    else
        state || fail "gcloud could not say how $name is; its message is above" 1
    fi
    on_hosts "bash tcl_jax/launch/tpu_host.sh status"
}

case "$command" in
logs) on_hosts "tail -n 100 -F tcl_jax_main.log" "$worker" ;;
stop) on_hosts "bash tcl_jax/launch/tpu_host.sh stop" ;;
*) "$command" ;;
esac
