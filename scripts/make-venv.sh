#!/bin/sh
# Make a virtual environment of Python 3.11 or newer: make-venv.sh DIRECTORY
# PYTHON names the interpreter; otherwise the first suitable one on PATH is taken.
# A working environment that is already there is kept.
set -eu

venv=$1
suitable='import sys; sys.exit(sys.version_info < (3, 11))'

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        "$PYTHON" -c "$suitable" 2>/dev/null ||
            fail "PYTHON=$PYTHON is not a Python of version 3.11 or newer." \
                "Name another one, or leave PYTHON unset to search PATH."
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c "$suitable" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "No Python of version 3.11 or newer was found on PATH." \
        "Install one (Debian, Ubuntu: apt-get install python3 python3-venv;" \
        "macOS: brew install python), or name it: make PYTHON=/path/to/python"
}

# Debian and its children ship venv without ensurepip unless python3.X-venv is installed.
ensure_ensurepip() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null && return
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing $package by apt-get (once)"
        apt_quietly update && apt_quietly install -y "$package" ||
            fail "apt-get could not install $package, which $1 needs to make a virtual environment."
    else
        fail "$1 cannot make a virtual environment: its ensurepip module is missing." \
            "Install it and run make again. Debian, Ubuntu: sudo apt-get install $package"
    fi
}

apt_quietly() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >/dev/null
}

if "$venv/bin/python" -c "$suitable; import pip" 2>/dev/null; then
    exit 0
fi
python=$(find_python)
ensure_ensurepip "$python"
echo "making the virtual environment $venv with $("$python" --version) (once)"
rm -rf "$venv"
"$python" -m venv "$venv" || {
    rm -rf "$venv"
    fail "$python could not make the virtual environment $venv; see above."
}
