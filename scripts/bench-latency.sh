#!/usr/bin/env bash
# Times low-latency calls and leaves a JSON and a log of each set in a folder.
#
#     scripts/bench-latency.sh target/release/tokenrail FOLDER [OPTIONS OF tokenrail latency ...]
#
# For a host with two GPUs, where it takes a few minutes; with one, ranks share it. Of options that take one value the last
# wins. Ends with status 1 if any set failed; the others' results are there.
set -uo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
binary=$1
folder=$2
shift 2
options=("$@")
mkdir -p "$folder" || exit 2
failed=()

latency() {
    local name=$1
    shift
    printf '%-12s ' "$name"
    if timeout --kill-after=5 120 "$binary" latency --backend cuda --quiet "$@" --json "$folder/$name.json" \
        "${options[@]}" >"$folder/$name.log" 2>&1; then
        tail -n 1 "$folder/$name.log"
    else
        failed+=("$name")
        printf 'FAILED: '
        grep -m 1 error: "$folder/$name.log" || echo "see $folder/$name.log"
    fi
}

timeout --kill-after=5 60 "$binary" info >"$folder/info.log" 2>&1 || failed+=(info)
# One rank has as much to write and to sum as each of two, and half of the messages: what a GPU does by itself.
latency alone --ranks 1 --sms 32,64,128
latency ep2 --ranks 2 --sms 16,32,64
# Of so many ranks on a GPU none may wait in a queue of the hardware before what it waits for (docs/decisions.md).
CUDA_DEVICE_MAX_CONNECTIONS=32 latency ep4 --ranks 4 --tokens 1,32,128 --sms 16,32
CUDA_DEVICE_MAX_CONNECTIONS=32 latency ep8 --ranks 8 --tokens 1,32,128 --sms 16
latency by-slot --ranks 2 --tokens 1,32,128 --summation by-slot
latency bf16-fp8 --ranks 2 --tokens 1,32,128 --dispatch bf16 --combine fp8
latency ue8m0-log10 --ranks 2 --tokens 1,32,128 --dispatch fp8-ue8m0 --combine log10

echo "took $SECONDS s"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
