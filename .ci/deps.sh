#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks; asks for what it may not install.
# With `wheels`, pip too, which fetches the servers of the matrix.
set -euo pipefail

need_wheels=${1:-}

have() { command -v "$1" >/dev/null 2>&1; }

# bindgen loads libclang, and libclang needs its own headers.
have_libclang() {
    [[ -n ${LIBCLANG_PATH:-} ]] && return
    if [[ $(uname -s) == Darwin ]]; then
        have brew && [[ -e $(brew --prefix)/opt/llvm/lib/libclang.dylib ]] ||
            [[ -e $(xcode-select -p 2>/dev/null)/usr/lib/libclang.dylib ]] ||
            [[ -e /Library/Developer/CommandLineTools/usr/lib/libclang.dylib ]]
        return
    fi
    compgen -G '/usr/lib*/llvm*/lib*/libclang*.so*' >/dev/null ||
        compgen -G '/usr/lib*/libclang*.so*' >/dev/null || return 1
    compgen -G '/usr/lib*/llvm*/lib*/clang/*/include/stddef.h' >/dev/null ||
        compgen -G '/usr/lib*/clang/*/include/stddef.h' >/dev/null
}

# missing <the thing> <its apt package> <its brew formula> <its dnf package>
apt=() brew=() dnf=() things=()
missing() { things+=("$1") apt+=("$2") brew+=("$3") dnf+=("$4"); }

find_missing() {
    [[ -n ${MAOS_SERVER:-} ]] || have redis-server || missing redis-server redis-server redis redis
    have_libclang || missing libclang libclang-dev llvm clang-devel
    have cc || missing 'a C compiler' build-essential gcc gcc
    [[ -z $need_wheels ]] || python3 -m pip --version >/dev/null 2>&1 ||
        missing pip python3-pip python python3-pip
}

as_root() {
    if [[ $(id -u) == 0 ]]; then "$@"; else sudo "$@"; fi
}

may_be_root() {
    [[ $(id -u) == 0 ]] || { have sudo && { [[ -t 0 ]] || sudo -n true 2>/dev/null; }; }
}

ask() {
    {
        echo "Missing here: $(IFS=,; echo "${things[*]}"). Please install, as an administrator:"
        echo "    Debian, Ubuntu:  apt-get install ${apt[*]}"
        echo "    Fedora:          dnf install ${dnf[*]}"
        echo "    macOS:           brew install ${brew[*]}"
        echo 'and run make again.'
    } >&2
    exit 1
}

install() {
    echo "installing: $(IFS=,; echo "${things[*]}")"
    if have brew; then
        brew install "${brew[@]}" || ask
    elif have apt-get && may_be_root; then
        as_root apt-get update -qq || ask
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${apt[@]}" || ask
    else
        ask
    fi
}

find_missing
((${#things[@]} == 0)) || install

if ! have cargo; then
    echo 'Missing here: Rust 1.88 or newer. Please install it from https://rustup.rs and run make again.' >&2
    exit 1
fi
