#!/usr/bin/env bash
# Breaks the engine in one way after another and measures how soon torture notices.
#
#     torture/mutations/run.sh [SECONDS] [NAME...]
#
# Each mutation is a patch beside this script whose first line says what it breaks. It is applied to
# a copy of the last commit, which is built and tortured until a promise is found broken, for
# SECONDS (60) at most. Prints a line for each; fails if any of them was not noticed.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=60
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    seconds=$1
    shift
fi
names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    for patch in torture/mutations/*.patch; do
        names+=("$(basename "$patch" .patch)")
    done
fi

# Beside other builds: only the engine and what is above it is built anew for each.
export CARGO_TARGET_DIR=${MUTATIONS_TARGET_DIR:-$PWD/target/mutations}
mkdir -p "$CARGO_TARGET_DIR"
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git archive HEAD | tar -x -C "$copy"

missed=0
for name in "${names[@]}"; do
    patch=$PWD/torture/mutations/$name.patch
    git -C "$copy" apply "$patch"
    if ! (cd "$copy" && cargo build -q --release --locked -p siltstone-cli 2>"$copy/build.log"); then
        cat "$copy/build.log" >&2
        echo "$name: does not build" >&2
        exit 1
    fi
    outcome=$("$CARGO_TARGET_DIR/release/siltstone" torture --seconds "$seconds" --json 2>/dev/null || true)
    git -C "$copy" apply -R "$patch"
    python3 - "$name" "$(head -1 "$patch")" "$outcome" <<'PYTHON' || missed=$((missed + 1))
import json, sys
name, what, outcome = sys.argv[1:]
found = json.loads(outcome) if outcome else {"violations": [{"reason": "aborted"}], "seconds": 0, "cuts": 0}
violations = found["violations"]
verdict = f"noticed after {found['seconds']:6.1f} s, {found['cuts']:6} cuts" if violations else "NOT NOTICED"
print(f"{name:24} {verdict}: {what}", flush=True)
if violations:
    print("    " + violations[0]["reason"].split("\n")[0][:160], flush=True)
sys.exit(0 if violations else 1)
PYTHON
done
[ "$missed" -eq 0 ] || { echo "$missed mutations were not noticed" >&2; exit 1; }
