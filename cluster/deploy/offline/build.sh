#!/bin/sh
# Builds the archive that installs nightread where there is no internet: FOLDER/nightread-VERSION-offline.tar.gz
#   build.sh PYTHON FOLDER [WEIGHTS…]
# PYTHON is that of an environment in which the project is installed; the archive is for its version and this platform.
# WEIGHTS are files to take along, published weights for training say. `make offline` calls this.
# WHEELS may name a folder of wheels that are taken instead of downloaded ones.
set -eu
python=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for weights in "$@"; do
    [ -f "$weights" ] || { echo "build.sh: there is no file $weights (WEIGHTS)" >&2; exit 2; }
    mkdir -p "$work/weights"
    cp "$weights" "$work/weights/"
done
root=$(cd "$(dirname "$0")/../../.." && pwd)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")
name=nightread-$version-offline
: "${SOURCE_DATE_EPOCH:=$(git -C "$root" log -1 --format=%ct 2>/dev/null || echo 1767225600)}"
export SOURCE_DATE_EPOCH PIP_DISABLE_PIP_VERSION_CHECK=1

mkdir -p "$work/$name/wheels"
if [ -n "${WHEELS:-}" ]; then cp "$WHEELS"/*.whl "$work/$name/wheels"; fi
cd "$work/$name"
rm -f wheels/nightread-*.whl
"$python" -m pip wheel --quiet --no-deps --wheel-dir wheels "$root"
if [ -z "${WHEELS:-}" ]; then
    # With what a cluster's nodes need beside (the extra `cluster`).
    "$python" -m pip download --quiet --only-binary :all: --constraint "$root/requirements.lock" --dest wheels \
        "$(echo "$PWD"/wheels/nightread-*.whl)[cluster]"
fi
"$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' >PYTHON
if [ -d "$work/weights" ]; then mv "$work/weights" weights; fi
cp -R "$root/docs" docs
mkdir deploy
cp -R "$root/cluster/deploy/." deploy/
cp "$root/requirements.lock" "$root/README.md" "$root/SECURITY.md" "$root/CHANGELOG.md" "$root/LICENSE" .
cp deploy/Dockerfile Dockerfile
cp deploy/offline/install.sh install.sh
(cd "$root" && "$python" -m cluster.sbom "$work/$name/wheels" "$work/$name/sbom.cdx.json")
find . -type d -exec chmod 755 {} +
find . -type f ! -name '*.sh' -exec chmod 644 {} +
find . -type f -name '*.sh' -exec chmod 755 {} +
find . -type f ! -name SHA256SUMS | sed 's|^\./||' | LC_ALL=C sort | while IFS= read -r file; do sha256sum "$file"; done >"$work/sums"
mv "$work/sums" SHA256SUMS
cd "$work"
tar --create --sort=name --format=posix --pax-option=delete=atime,delete=ctime --owner=0 --group=0 --numeric-owner \
    --mtime="@$SOURCE_DATE_EPOCH" "$name" | gzip --no-name --fast >"$out/$name.tar.gz.part"
mv "$out/$name.tar.gz.part" "$out/$name.tar.gz"
(cd "$out" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256")
echo "$out/$name.tar.gz"
