#!/usr/bin/env bash
# Fuzzes the core, one target after the other: libFuzzer, guided by coverage, on stable Rust.
# usage: fuzz.sh [target ...]; FUZZ_SECONDS for each target (60), FUZZ_JOBS at once (all cores)
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
seconds=${FUZZ_SECONDS:-60}
jobs=${FUZZ_JOBS:-$(getconf _NPROCESSORS_ONLN)}
out=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
targets=("$@")
((${#targets[@]})) || targets=(record shaped fact request document backup)

command -v c++ >/dev/null || { echo 'libFuzzer is built with a C++ compiler (Debian: apt-get install g++)' >&2; exit 1; }

host=$(rustc -vV | sed -n 's/^host: //p')
# What tells libFuzzer which branches a run took, and what it compared.
RUSTFLAGS="-Cpasses=sancov-module -Ccodegen-units=1 \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares" \
    CARGO_TARGET_DIR=$out $cargo build --release --target "$host" --manifest-path tests/fuzz/Cargo.toml

# Frozen records, facts and backups, as bytes, to begin with.
mkdir -p "$out/seeds"
n=0
while read -r line; do
    for word in $line; do
        [[ $word =~ ^([0-9a-f]{2})+$ ]] || continue
        n=$((n + 1))
        printf "$(sed 's/../\\x&/g' <<<"$word")" >"$out/seeds/golden-$n"
    done
done < <(cat tests/golden/*.txt)

for target in "${targets[@]}"; do
    mkdir -p "$out/corpus/$target" "$out/finds/$target"
    echo "== $target: $seconds seconds on $jobs cores"
    pids=()
    for ((job = 0; job < jobs; job++)); do
        "$out/$host/release/$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 \
            -reload=1 -print_final_stats=1 -artifact_prefix="$out/finds/$target/" \
            "$out/corpus/$target" "$out/seeds" >"$out/$target-$job.log" 2>&1 &
        pids+=($!)
    done
    failed=0
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    cat "$out/$target"-*.log | awk '/stat::number_of_executed_units/ { n += $2 } END { printf "%d executions\n", n }'
    if ((failed)); then
        tail -n 30 "$out/$target"-*.log
        echo "$target found something: $out/finds/$target" >&2
        exit 1
    fi
done
