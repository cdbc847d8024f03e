#!/usr/bin/env bash
# Builds the fuzz targets on the stable toolchain, with the coverage instrumentation that
# libFuzzer needs; prints the folder they are in. Takes a C++ compiler (for libFuzzer itself).
set -euo pipefail
cd "$(dirname "$0")"

host=$(rustc -vV | sed -n 's/^host: //p')
flags=(
    --cfg fuzzing
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    -Ccodegen-units=1
)
# With --target, the flags do not reach build scripts and macros, which run without libFuzzer.
RUSTFLAGS="${flags[*]}" cargo build --release --target "$host" >&2

echo "${CARGO_TARGET_DIR:-$PWD/target}/$host/release"
