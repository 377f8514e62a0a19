# Sourced by the other scripts: makes .venv in the repository root and installs tcl_jax into it.
# usage: source launch/setup_venv.sh; setup_venv '' | setup_venv '[test]'

find_python() {
    local candidate
    for candidate in python3.12 python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 or 3.12 is needed and was not found on PATH; install one of them" >&2
    return 2
}

setup_venv() {
    local extras="$1" python stamp fingerprint
    stamp=".venv/installed${extras//[^a-z]/-}"
    if [ ! -x .venv/bin/python ]; then
        python="$(find_python)"
        echo "making .venv with $("$python" --version)"
        if ! "$python" -m venv .venv; then
            rm -rf .venv
            echo "error: '$python -m venv' failed; on Debian install python3-venv" >&2
            return 2
        fi
    fi
    fingerprint="$(cksum <setup.py) $PWD"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$fingerprint" ]; then
        echo "installing tcl_jax$extras and what it needs (about 600 MB the first time)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extras"
        echo "$fingerprint" >"$stamp"
    fi
}
