#!/usr/bin/env bash
# Runs a command on machines with RDMA devices, where there are none: in QEMU, with Soft-RoCE. The host's root is theirs,
# read-only, so that a program runs as it was built; what it writes is lost. Needs root, and no /dev/kvm.
#
#   scripts/rdma-testbed/run.sh one COMMAND…     one machine, rxe0 and rxe1 on the two ends of a cable (v0 and v1)
#   scripts/rdma-testbed/run.sh two COMMAND…     two machines joined by a cable, rxe0 on eth0; the command on both
#
# The command finds TOKENRAIL_REQUIRE_VERBS=1 and TOKENRAIL_VERBS_DEVICES, and on two machines TOKENRAIL_RANK (0 or 1) and
# TOKENRAIL_ADDRESSES, all their IP addresses in order. Variables named TOKENRAIL_*, RUST* and CARGO_* are passed on.
# Its output comes as it is written; the exit status is its own (of two the first that is not 0), 124 if
# TESTBED_SECONDS (180) have passed, 125 if the machine did not run it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${TESTBED_DIR:-$here/../../.rdma}
limit=${TESTBED_SECONDS:-180}
arrangement=${1:-}
shift || true
case $arrangement in
one) machines=(0) devices="rxe0 rxe1" ;;
two) machines=(0 1) devices="rxe0" ;;
*) sed -n '2,/^set/s/^# \?//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
[ $# -gt 0 ] || { echo "error: no command" >&2; exit 2; }
[ -e "$dir/initramfs" ] || { echo "error: first run $here/setup.sh" >&2; exit 125; }

tree=$dir/tree
work=$(mktemp -d)
pids=()
tails=()
cleanup() {
    [ ${#pids[@]} -eq 0 ] || kill -9 "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# An environment file, sourced by sh.
variables() {
    local name
    for name in $(compgen -e | grep -E '^(TOKENRAIL_|RUST|CARGO_|LD_LIBRARY_PATH$|PATH$|HOME$)'); do
        printf "export %s='%s'\n" "$name" "${!name//\'/\'\\\'\'}"
    done
    printf "export %s='%s'\n" ARRANGEMENT "$arrangement" TOKENRAIL_RANK "$1" TOKENRAIL_REQUIRE_VERBS 1 \
        TOKENRAIL_VERBS_DEVICES "$devices"
    [ "$arrangement" = one ] || echo "export TOKENRAIL_ADDRESSES='10.2.0.1 10.2.0.2'"
}

for machine in "${machines[@]}"; do
    share=$work/$machine
    mkdir "$share"
    cp "$here/guest.sh" "$share/"
    variables "$machine" >"$share/environment"
    {
        printf "cd '%s'\nexec" "${PWD//\'/\'\\\'\'}"
        for word in "$@"; do printf " '%s'" "${word//\'/\'\\\'\'}"; done
        echo
    } >"$share/command"
    : >"$share/output"
    network=(-nic none)
    if [ "$arrangement" = two ]; then
        end=server=off
        [ "$machine" = 1 ] || end=server=on
        network=(-netdev "stream,id=cable,$end,addr.type=unix,addr.path=$work/cable"
            -device "virtio-net-pci,netdev=cable,mac=52:54:00:00:00:0$((machine + 1)),romfile=")
        # Whoever calls must find somebody listening.
        for _ in $(seq 200); do
            [ "$machine" = 1 ] && [ ! -S "$work/cable" ] || break
            sleep 0.05
        done
    fi
    # It ends with this script, however that ends.
    LD_LIBRARY_PATH=$tree/usr/lib/x86_64-linux-gnu:$tree/lib/x86_64-linux-gnu \
        QEMU_MODULE_DIR=$tree/usr/lib/x86_64-linux-gnu/qemu \
        setpriv --pdeathsig KILL "$tree/usr/bin/qemu-system-x86_64" -L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios" \
        -nodefaults -no-user-config -no-reboot -display none -machine q35 -accel tcg,thread=multi -cpu max \
        -smp 2 -m 1024 -serial "file:$share/console" \
        -kernel "$dir/vmlinux" -initrd "$dir/initramfs" \
        -append "console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0" \
        -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
        -virtfs "local,path=$share,mount_tag=share,security_model=none" \
        "${network[@]}" </dev/null >"$share/qemu" 2>&1 &
    pids+=($!)
    # The shell is not to report how it ends.
    disown $!
done

for machine in "${machines[@]}"; do
    # Ends by itself after the machine has.
    if [ "$arrangement" = one ]; then
        tail -f -n +1 -s 0.1 --pid="${pids[machine]}" "$work/$machine/output" &
    else
        tail -f -n +1 -s 0.1 --pid="${pids[machine]}" "$work/$machine/output" | sed -u "s/^/[$machine] /" &
    fi
    tails+=($!)
done
end=$((SECONDS + limit))
late=
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do
        if [ "$SECONDS" -ge "$end" ]; then
            late=1
            kill -9 "${pids[@]}" 2>/dev/null || true
        fi
        sleep 0.1
    done
done
wait "${tails[@]}" || true
pids=()
tails=()

[ -z "$late" ] || { echo "error: not done after $limit s" >&2; exit 124; }
for machine in "${machines[@]}"; do
    status=$(cat "$work/$machine/status" 2>/dev/null || true)
    if [ -z "$status" ]; then
        echo "error: machine $machine did not run the command:" >&2
        tail -n 40 "$work/$machine/qemu" "$work/$machine/console" >&2 || true
        exit 125
    fi
    [ "$status" = 0 ] || exit "$status"
done
