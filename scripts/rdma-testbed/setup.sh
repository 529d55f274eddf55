#!/usr/bin/env bash
# Gives a Debian machine what `--features rdma` needs to build, and the test bed what it needs to boot. The former is
# installed; the latter (QEMU, a kernel, busybox) is only unpacked into DIR: nothing on the system changes for it. Run
# again, it does only what is missing.
#
#   scripts/rdma-testbed/setup.sh [DIR]     (DIR: .rdma at the repository root)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${1:-$here/../../.rdma}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

# To build and link libibverbs' bindings; its drivers; and `ip` and `rdma`, which the guest runs.
build=(cmake libclang-dev libibverbs-dev libnl-3-dev libnl-route-3-dev ibverbs-providers iproute2 python3)
# In load order; those that this kernel has built in are left out.
modules=(virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio virtio_pci failover net_failover virtio_net
    crc32_generic ib_core ib_uverbs udp_tunnel ip6_udp_tunnel rdma_rxe veth sch_netem
    9pnet netfs fscache 9p 9pnet_virtio overlay)

fail() {
    echo "error: $*" >&2
    exit 1
}
installed() { dpkg-query -W -f '${db:Status-Abbrev}\n' "$1" 2>/dev/null | grep -q '^ii'; }
# `apt-get update` at most once.
update() {
    [ -n "${updated:-}" ] || apt-get -qq update >&2 || true
    updated=1
}

missing=()
for package in "${build[@]}"; do
    installed "$package" || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    update
    apt-get -qq install -y --no-install-recommends "${missing[@]}" >&2 || fail "cannot install ${missing[*]}"
    echo "did:     installed ${missing[*]}"
fi

# --- QEMU, busybox and a kernel, unpacked ---------------------------------------------------------------------------
if [ ! -e "$dir/unpacked" ]; then
    update
    rm -rf "$dir/tree" "$dir/debs"
    mkdir -p "$dir/tree" "$dir/debs"
    # What an installation would bring, this machine's own libraries left out.
    mapfile -t packages < <(
        apt-get install --simulate --no-install-recommends qemu-system-x86 busybox-static |
            awk '$1 == "Inst" { for (i = 3; i <= NF; i++) if ($i ~ /^\(/) { print $2 "=" substr($i, 2); break } }'
    )
    kernel=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
    [ -n "$kernel" ] || fail "apt knows no linux-image-amd64"
    for package in qemu-system-x86 busybox-static; do # What is installed is not named above.
        if installed "$package"; then packages+=("$package"); fi
    done
    (cd "$dir/debs" && apt-get -qq download "${packages[@]}" "$kernel" >&2) || fail "apt-get could not download"
    for deb in "$dir"/debs/*.deb; do
        dpkg -x "$deb" "$dir/tree"
    done
    rm -rf "$dir/debs"
    touch "$dir/unpacked"
    echo "did:     unpacked $((${#packages[@]} + 1)) packages"
fi

# --- the kernel as ELF, which boots in half the time, and an initramfs ---------------------------------------------------
if [ ! -e "$dir/vmlinux" ]; then
    python3 - "$dir"/tree/boot/vmlinuz-* "$dir/vmlinux.part" <<'PYTHON'
import lzma, sys
image = open(sys.argv[1], "rb").read()
kernel = lzma.LZMADecompressor().decompress(image[image.index(b"\xfd7zXZ\0"):])
assert kernel[:4] == b"\x7fELF", "the kernel is not compressed with xz"
open(sys.argv[2], "wb").write(kernel)
PYTHON
    mv "$dir/vmlinux.part" "$dir/vmlinux"
    echo "did:     took vmlinux out of its image"
fi
if [ ! "$dir/initramfs" -nt "$here/init" ] || [ ! "$dir/initramfs" -nt "$here/setup.sh" ]; then
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    mkdir -p "$root"/{bin,dev,proc,sys,modules,lower,upper,share}
    cp "$dir/tree/bin/busybox" "$root/bin/busybox"
    install -m 755 "$here/init" "$root/init"
    for module in "${modules[@]}"; do
        file=$(find "$dir/tree/lib/modules" -name "$module.ko" -print -quit)
        [ -n "$file" ] || continue
        cp "$file" "$root/modules/"
        echo "$module.ko" >>"$root/modules/order"
    done
    (cd "$root" && find . | "$dir/tree/bin/busybox" cpio -o -H newc 2>/dev/null) >"$dir/initramfs.part"
    mv "$dir/initramfs.part" "$dir/initramfs"
    echo "did:     made the initramfs"
fi
