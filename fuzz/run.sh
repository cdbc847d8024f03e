#!/usr/bin/env bash
# usage: fuzz/run.sh SECONDS [TARGET...]
# Builds the fuzz targets and runs each (or those named) for so long, as many at a time as there
# are cores. Inputs that were found to matter are kept in fuzz/corpus, those that fail and the
# logs in fuzz/artifacts. Fails if any target does. Repeat a failure with the target's program and
# the file: $(fuzz/build.sh)/TARGET fuzz/artifacts/TARGET/crash-...
# (for pool_image with SILTSTONE_FUZZ_IMAGE=fuzz/artifacts/pool_image/base).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

[[ ${1:-} =~ ^[0-9]+$ ]] || { sed -n '2,7s/^# //p' "$0" >&2; exit 2; }
export seconds=$1
shift
if [ $# -eq 0 ]; then
    # Those that take longest come first.
    slow="operations pool_image map_pages nbd"
    # shellcheck disable=SC2046,SC2086
    set -- $slow $(basename -s .rs "$here"/targets/*.rs | grep -vxF "$(tr ' ' '\n' <<<"$slow")")
fi

programs=$("$here/build.sh")
export here programs SILTSTONE_FUZZ_IMAGE=$here/corpus/pool_image.base
"$programs/seeds" "$here/corpus"

run() {
    local target=$1 artifacts=$here/artifacts/$1
    mkdir -p "$artifacts" "$here/corpus/$target"
    if "$programs/$target" "$here/corpus/$target" -artifact_prefix="$artifacts/" \
        -max_total_time="$seconds" -timeout=25 -rss_limit_mb=2048 -max_len=16384 \
        -print_final_stats=1 >"$artifacts/log" 2>&1; then
        awk -v target="$target" '
            /^stat::number_of_executed_units/ { runs = $2 }
            /^stat::average_exec_per_sec/ { rate = $2 }
            / cov: / { for (i = 1; i < NF; i++) if ($i == "cov:") cov = $(i + 1) }
            END { printf "%-12s ok: %9d runs, %6d a second, %5d edges\n", target, runs, rate, cov }
        ' "$artifacts/log"
    else
        [ "$target" != pool_image ] || cp "$SILTSTONE_FUZZ_IMAGE" "$artifacts/base"
        echo "$target FAILED: $artifacts/log ends with"
        tail -n 60 "$artifacts/log"
        return 1
    fi
}
export -f run
printf '%s\n' "$@" | xargs -P "$(nproc)" -I{} bash -euo pipefail -c 'run {}'
