#!/bin/sh
# Make a checkout usable: Debian packages that are missing, a virtual environment, the guest kernel and the
# memory template that sandboxes of the default shape start from.
#
#   setup.sh        what running sandboxes and the demo need
#   setup.sh --dev  and what the tests and benchmarks need
#
# Run again, it finds everything in place and changes nothing.
set -eu
cd "$(dirname "$0")/.."

case "$(uname -m)" in
    x86_64) qemu=qemu-system-x86 ;;
    aarch64) qemu=qemu-system-arm ;;
    *) echo "setup: unsupported architecture $(uname -m)" >&2; exit 1 ;;
esac
packages="python3 python3-venv ca-certificates $qemu squashfs-tools e2fsprogs mmdebstrap uidmap"
extras=""
if [ "${1:-}" = --dev ]; then
    packages="$packages busybox-static cpio docker-registry skopeo umoci clang faketime"
    extras="[dev]"
fi

say() { printf '%s\n' "setup: $*" >&2; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else say "these need root, run them and start again: $*"; exit 1
    fi
}

missing=""
for package in $packages; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
# libFuzzer's runtime is a package of clang's version, which the distribution chooses.
if [ -n "$extras" ] && ! ls /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a >/dev/null 2>&1; then
    missing="$missing libclang-rt-dev"
fi
if [ -n "$missing" ]; then
    say "installing Debian packages:$missing"
    as_root apt-get update -qq
    case "$missing" in *libclang-rt-dev*)
        version="$(apt-cache depends clang | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p' | head -n 1)"
        missing="$(printf %s "$missing" | sed "s/libclang-rt-dev/libclang-rt-$version-dev/")" ;;
    esac
    # shellcheck disable=SC2086 # a list of packages
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "Python 3.11 or newer is needed; $python is older (set PYTHON=/path/to/python3.11)"; exit 1; }
if [ ! -x .venv/bin/python ]; then
    say "making the virtual environment .venv"
    "$python" -m venv .venv
fi
wanted="$(cat pyproject.toml hatch_build.py guest/*.[ch] preload/*.c | sha256sum | cut -d ' ' -f 1)$extras"
installed="$(cat .venv/.installed 2>/dev/null || true)"
if [ "$installed" != "$wanted" ] && [ "$installed" != "${wanted%"$extras"}[dev]" ]; then
    say "installing the package and its dependencies into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extras"
    printf %s "$wanted" > .venv/.installed
fi
# Prometheus would be started by its package's installation: the tests want its program alone.
if [ -n "$extras" ] && [ ! -x build/prometheus/usr/bin/prometheus ]; then
    say "unpacking Prometheus into build/prometheus"
    unpacking="$PWD/build/prometheus.partial"
    rm -rf "$unpacking" build/prometheus
    mkdir -p "$unpacking"
    download="apt-get download -qq -o APT::Sandbox::User=root prometheus"
    # shellcheck disable=SC2086 # a command and its arguments
    (cd "$unpacking" && { $download 2>/dev/null || { as_root apt-get update -qq && $download; }; })
    dpkg-deb -x "$unpacking"/prometheus_*.deb "$unpacking"
    rm "$unpacking"/prometheus_*.deb
    mv "$unpacking" build/prometheus
fi
# As an installer does: where PYTHONDONTWRITEBYTECODE is set every start would compile the package again.
.venv/bin/python -m compileall -q src
.venv/bin/msb doctor --fix --quiet
