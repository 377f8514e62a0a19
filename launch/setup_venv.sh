# shellcheck shell=bash
# Sourced by the other scripts: makes .venv in the repository root and installs tcl_jax into it.
# usage: source launch/setup_venv.sh; setup_venv '' | setup_venv '[test]'; setup_oracle;
# setup_browser
# PYTHON=python3.13 names the Python of a new .venv; else it is the newest that is supported.

supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'
versions="Python 3.11 to 3.14"

# The newest that is supported, or the one that $PYTHON names. Debian ships Python without ensurepip,
# and then `-m venv` leaves a half-made folder; uv does without.
find_python() {
    local candidate lacking=''
    for candidate in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3 python}; do
        "$candidate" -c "$supported" 2>/dev/null || continue
        if command -v uv >/dev/null || "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        lacking="$lacking $candidate"
    done
    if [ -n "$lacking" ]; then
        echo "error: the venv module is missing from$lacking; on Debian and Ubuntu install" \
            "python3-venv, elsewhere uv, or a $versions that has it" >&2
    elif [ -n "${PYTHON:-}" ]; then
        echo "error: PYTHON=$PYTHON does not run $versions; name one that does" >&2
    else
        echo "error: $versions is needed and was not found on PATH; install one" >&2
    fi
    return 2
}

# Installs into .venv, by uv where there is one, which takes seconds instead of a minute.
install_packages() {
    if command -v uv >/dev/null && uv pip install --quiet --python .venv/bin/python "$@"; then
        return
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
}

setup_venv() {
    local extras="$1" clear python stamp fingerprint
    stamp=".venv/installed${extras//[^a-z]/-}"
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python="$(find_python)"
        echo "making .venv with $("$python" --version)"
        clear=--clear
        ! .venv/bin/python -c '' 2>/dev/null || clear='' # neither absent nor without its Python
        if command -v uv >/dev/null; then
            uv venv --quiet --seed "${clear:---allow-existing}" --python "$python" .venv
        else
            "$python" -m venv ${clear:+"$clear"} .venv
        fi
    fi
    if ! .venv/bin/python -c "$supported"; then
        echo "error: .venv holds $(.venv/bin/python --version), and $versions is needed;" \
            "delete .venv and run this again" >&2
        return 2
    fi
    if [ -n "${PYTHON:-}" ] &&
        [ "$("$PYTHON" --version 2>&1)" != "$(.venv/bin/python --version)" ]; then
        echo "error: .venv holds $(.venv/bin/python --version), and not that of PYTHON=$PYTHON;" \
            "delete .venv and run this again, or leave PYTHON out" >&2
        return 2
    fi
    fingerprint="$(cksum <setup.py) $PWD"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$fingerprint" ]; then
        echo "installing tcl_jax$extras and what it needs (some minutes the first time)"
        install_packages --editable ".$extras"
        echo "$fingerprint" >"$stamp"
    fi
    unset PYTHON # other scripts run it, and .venv has it now
}

# PyTorch, which judges some tests. It is no dependency, since PyPI's for Linux is a CUDA build of
# gigabytes; without it those tests are skipped.
setup_oracle() {
    local pin='torch==2.13.0+cpu'
    .venv/bin/python -c "import importlib.metadata as m; assert 'torch==' + m.version('torch') \
        == '$pin'" 2>/dev/null && return
    echo "installing $pin for the tests against it"
    .venv/bin/python -m pip install -qq --disable-pip-version-check --retries 0 --timeout 10 \
        --extra-index-url https://download.pytorch.org/whl/cpu "$pin" ||
        echo "$pin could not be installed; the tests against PyTorch are skipped"
}

# Chromium, in which the web page is tested; without it those tests are skipped.
setup_browser() {
    command -v chromium chromium-browser >/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing Chromium for the tests of the web page"
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes \
            --no-install-recommends chromium; } >/dev/null 2>&1 && return
    fi
    echo "Chromium is missing; the tests of the web page are skipped"
}
