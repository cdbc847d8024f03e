#!/bin/sh
# Installs the C interface: header, libraries and pkg-config file. First, in the repository's root:
#     cargo build --release -p siltstone-capi
#     capi/install.sh                    # below /usr/local; or another prefix: capi/install.sh /opt/siltstone
# DESTDIR is put before every path, for packages; BUILT is where the libraries are.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
prefix=${1:-/usr/local}
built=${BUILT:-${CARGO_TARGET_DIR:-$here/../target}/release}
root=${DESTDIR:-}$prefix

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$here/../Cargo.toml")
# The name that programs ask for: see build.rs.
soname=$(objdump -p "$built/libsiltstone.so" | sed -n 's/^ *SONAME *//p')
[ -n "$soname" ] || { echo "$built/libsiltstone.so has no SONAME" >&2; exit 1; }

install -d "$root/include" "$root/lib/pkgconfig"
install -m 644 "$here/include/siltstone.h" "$root/include/"
install -m 644 "$built/libsiltstone.a" "$root/lib/"
install -m 755 "$built/libsiltstone.so" "$root/lib/libsiltstone.so.$version"
ln -sf "libsiltstone.so.$version" "$root/lib/$soname"
ln -sf "$soname" "$root/lib/libsiltstone.so"
cat > "$root/lib/pkgconfig/siltstone.pc" <<END
prefix=$prefix
includedir=\${prefix}/include
libdir=\${prefix}/lib

Name: siltstone
Description: A deduplicating, compressing block storage engine
Version: $version
Cflags: -I\${includedir}
Libs: -L\${libdir} -lsiltstone
Libs.private: -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc
END
echo "installed below $root; if programs do not find $soname, run ldconfig"
