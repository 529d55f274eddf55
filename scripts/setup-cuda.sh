#!/usr/bin/env bash
# Gives a machine without CUDA what `--features cuda` needs to build: a Rust compiler for nvptx64, ptxas, libNVVM, the
# CUDA headers, and a stub of the driver library to link against. Run again, it does only what is missing.
#
#   scripts/setup-cuda.sh [DIR]     (DIR: .cuda at the repository root)
#
# With a CUDA toolkit of 13.3 or later installed none of DIR is needed: set CUDA_PATH to the toolkit instead.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${1:-$here/../.cuda}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
target=nvptx64-nvidia-cuda

# The wheels of one CUDA release (the C++ core libraries count their own versions).
wheels=(
    nvidia-nvvm==13.5.37
    nvidia-cuda-nvcc==13.5.37
    nvidia-cuda-runtime==13.5.37
    nvidia-cuda-crt==13.5.37
    nvidia-cuda-cccl==13.3.5.0.6
    nvidia-cuda-cuobjdump==13.5.37
    nvidia-cuda-nvdisasm==13.5.37
)

did() { echo "did:     $*"; }
skipped() { echo "skipped: $*"; }
fail() {
    echo "error: $*" >&2
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

apt_install() {
    has apt-get || return 1
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || return 1
        sudo=(sudo)
    fi
    # First the lists: an old one names an older compiler, which installs and does not do.
    "${sudo[@]}" apt-get update >&2 || true
    "${sudo[@]}" apt-get install -y --no-install-recommends "$@" >&2
}

# True if the given rustc can build for the GPU: LLVM 22 (rustc 1.95), and `core` ready made or its source.
builds_for_gpu() {
    local lib llvm
    llvm=$("$1" -vV 2>/dev/null | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    [ "${llvm:-0}" -ge 22 ] || return 1
    lib=$("$1" --print sysroot 2>/dev/null)/lib/rustlib || return 1
    compgen -G "$lib/$target/lib/libcore-*.rlib" >/dev/null || [ -d "$lib/src/rust/library/core" ]
}

# --- host tools ---------------------------------------------------------------------------------------------------
if has g++; then
    skipped "g++: already installed"
else
    apt_install g++ || fail "no g++ (the stub and nvcc need it): install it with your system's package manager"
    did "installed g++"
fi
if ! has python3 || ! python3 -m pip --version >/dev/null 2>&1; then
    apt_install python3 python3-pip || fail "no python3 with pip (they fetch the wheels): install them"
    did "installed python3 and pip"
fi

# --- the device compiler --------------------------------------------------------------------------------------------
if [ -n "${NVVM_BUILDER_RUSTC:-}" ] && builds_for_gpu "$NVVM_BUILDER_RUSTC"; then
    skipped "device compiler: NVVM_BUILDER_RUSTC=$NVVM_BUILDER_RUSTC builds for $target"
elif has rustc && builds_for_gpu rustc; then
    skipped "device compiler: the current rustc builds for $target"
elif [ -x /usr/bin/rustc ] && builds_for_gpu /usr/bin/rustc; then
    skipped "device compiler: /usr/bin/rustc builds for $target"
else
    apt_install rustc-web cargo-web rust-web-src ||
        fail "no device compiler: neither Debian's packages rustc-web, cargo-web and rust-web-src can be installed," \
            "nor has rustc what it needs: 'rustup component add rust-src' (1.96 or later)"
    did "installed rustc-web, cargo-web and rust-web-src as the device compiler"
fi

# --- CUDA, from wheels ----------------------------------------------------------------------------------------------
mkdir -p "$dir/.wheels"
for wheel in "${wheels[@]}"; do
    mark=$dir/.wheels/$wheel
    if [ -e "$mark" ]; then
        skipped "$wheel: already unpacked"
        continue
    fi
    work=$(mktemp -d "$dir/.unpack-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -d "$work" "$wheel" ||
        fail "pip could not fetch $wheel for this platform"
    (cd "$work" && python3 -m zipfile -e ./*.whl .)
    cp -a "$work"/nvidia/cu13/. "$dir/"
    rm -rf "$work"
    trap - EXIT
    touch "$mark"
    did "fetched and unpacked $wheel"
done

# A zip file opened by Python loses the run bits.
find "$dir/bin" "$dir/nvvm/bin" -maxdepth 1 -type f ! -name '*.profile' -exec chmod +x {} +

# The toolkit's folder names.
link() {
    mkdir -p "$(dirname "$dir/$2")"
    if [ "$(readlink "$dir/$2" || true)" = "$1" ]; then
        skipped "$2 -> $1: already there"
    else
        ln -sfn "$1" "$dir/$2"
        did "linked $2 -> $1"
    fi
}
link lib lib64
link libcudart.so.13 lib/libcudart.so
link ../../lib/libnvvm.so.4 nvvm/lib64/libnvvm.so.4
link libnvvm.so.4 nvvm/lib64/libnvvm.so

# --- the driver stub ------------------------------------------------------------------------------------------------
# Linked as -lcuda; its soname makes the program ask for libcuda.so.1, the real driver, when it runs.
stubs=$dir/lib/stubs
if [ "$stubs/libcuda.so.1" -nt "$here/cuda_stub.c" ] && [ "$stubs/libcuda.so.1" -nt "$dir/include/cuda.h" ]; then
    skipped "stub of libcuda: already compiled"
else
    mkdir -p "$stubs"
    # Both readings of the header: current names, and (what bindings made from older headers use) their predecessors.
    # cuProfiler* stand in a header of their own.
    {
        cc -E -P "$dir/include/cuda.h"
        cc -E -P -D__CUDA_API_VERSION_INTERNAL "$dir/include/cuda.h"
        echo 'cuProfilerInitialize( cuProfilerStart( cuProfilerStop('
    } | grep -oE '\bcu[A-Z][A-Za-z0-9_]*[[:space:]]*\(' | tr -d ' \t(' | sort -u |
        grep -vxE 'cuGetErrorName|cuGetErrorString|cuDriverGetVersion|cuGetProcAddress(_v2)?' |
        sed 's/.*/STUB(&)/' >"$stubs/cuda_functions.h"
    count=$(wc -l <"$stubs/cuda_functions.h")
    [ "$count" -gt 300 ] || fail "only $count driver functions found in $dir/include/cuda.h: the header has changed its form"
    cc -shared -fPIC -O1 -I"$stubs" -Wl,-soname,libcuda.so.1 -o "$stubs/libcuda.so.1" "$here/cuda_stub.c"
    ln -sfn libcuda.so.1 "$stubs/libcuda.so"
    did "compiled a stub of libcuda with $count functions"
fi

# --- how to use it --------------------------------------------------------------------------------------------------
env=$(printf 'export CUDA_PATH="%s"\nexport CUDA_LIBRARY_PATH="%s"' "$dir" "$dir")
if [ "$(cat "$dir/env.sh" 2>/dev/null || true)" = "$env" ]; then
    skipped "$dir/env.sh: already written"
else
    echo "$env" >"$dir/env.sh"
    did "wrote $dir/env.sh"
fi
echo
echo "To build with it:   source $dir/env.sh"
sed 's/^/    /' "$dir/env.sh"
echo "Without a driver (libcuda.so.1), programs and tests also need:"
echo "    export LD_LIBRARY_PATH=\"$stubs\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}\""
