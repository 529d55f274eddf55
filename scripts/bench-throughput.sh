#!/usr/bin/env bash
# Runs the sweeps that docs/performance.md is written from, and leaves a JSON and a log of each in a folder.
#
#     scripts/bench-throughput.sh target/release/tokenrail FOLDER [OPTIONS OF tokenrail sweep ...]
#
# For a host with two GPUs, where it takes a few minutes; with one, ranks share it. Of options that take one value the last
# wins, such as `--iterations 20`; lists grow, and `--devices 0,1` has none to begin with. Ends with status 1 if any sweep
# failed; the others' results are there.
set -uo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
binary=$1
folder=$2
shift 2
options=("$@")
# All of it has to fit: a sweep that would begin later than this is left out, and one that hangs is ended.
limit=${BENCH_SECONDS:-480}
mkdir -p "$folder" || exit 2
failed=()

sweep() {
    local name=$1 left=$((limit - SECONDS)) start=$SECONDS
    shift
    if [ "$left" -lt 5 ]; then
        failed+=("$name (no time left)")
        return
    fi
    printf '%-12s ' "$name"
    if timeout --kill-after=5 "$((left < 120 ? left : 120))" "$binary" sweep --backend cuda --quiet "$@" \
        --json "$folder/$name.json" "${options[@]}" >"$folder/$name.log" 2>&1; then
        tail -n 1 "$folder/$name.log"
    else
        failed+=("$name")
        printf 'FAILED: '
        grep -m 1 error: "$folder/$name.log" || echo "see $folder/$name.log"
    fi
    printf '%-12s %d s\n' '' $((SECONDS - start))
}

timeout --kill-after=5 60 "$binary" info >"$folder/info.log" 2>&1 || failed+=(info)

sweep sms --tokens 4096 --sms 1,2,4,8,12,16,24,32,48,64
sweep tokens --tokens 16,64,128,256,512,1024,2048,4096,8192,16384 --sms 16,24
sweep skew --tokens 4096 --sms 16,24 --gate zipf,one
sweep by-expert --tokens 128,4096 --sms 8,16,24,32 --element fp8 --forms by-expert
sweep forms --tokens 128,4096 --sms 8,16,24 --forms cached,copy-engine,plain
sweep ep4 --ranks 4 --tokens 128,4096 --sms 8,16,24
sweep ep8 --ranks 8 --tokens 128,4096 --sms 8,12,16

echo "took $SECONDS s"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
