#!/bin/sh
# Installs nightread from this archive, without network and without compiler.
#   sh install.sh FOLDER        FOLDER becomes a virtual environment: FOLDER/bin/nightread is the command
# A FOLDER of an earlier installation is made anew; any other has to be empty. FOLDER/SHA256SUMS says what is installed.
# PYTHON names another Python than python3; it must be of the version that the archive was made for.
set -eu
umask 022

refuse() {
    echo "install.sh: $1" >&2
    echo "  $2" >&2
    exit 2
}

[ $# -eq 1 ] || refuse "One folder is needed." "Say: sh install.sh FOLDER"
archive=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
target=$(cd "$1" && pwd)
[ -f "$target/pyvenv.cfg" ] || rmdir "$target" 2>/dev/null ||
    refuse "$target is not empty, and no earlier installation." "Name a folder of its own: what is in it would be deleted."
wanted=$(cat "$archive/PYTHON")
python=${PYTHON:-}
if [ -z "$python" ]; then
    for python in "python$wanted" python3; do
        command -v "$python" >/dev/null && break
    done
fi

(cd "$archive" && sha256sum --check --quiet SHA256SUMS) >&2 ||
    refuse "The archive is damaged or was changed: see the files above." "Copy it again and compare its own sum."
there=$(cd "$archive" && find . -type f ! -name SHA256SUMS | sed 's|^\./||' | LC_ALL=C sort)
named=$(sed 's/^[0-9a-f]* [ *]//' "$archive/SHA256SUMS" | LC_ALL=C sort)
[ "$there" = "$named" ] ||
    refuse "The archive holds files that SHA256SUMS does not name." "Unpack it again into an empty folder."

found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
    refuse "There is no Python here." "Install Python $wanted, or name it: PYTHON=… sh install.sh FOLDER"
[ "$found" = "$wanted" ] ||
    refuse "$python is Python $found, and the archive is for $wanted." "Name that one: PYTHON=… sh install.sh FOLDER"

"$python" -m venv --clear "$target" ||
    refuse "Python could not make a virtual environment." "Install its module venv (Debian: python$wanted-venv)."
"$target/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --isolated --no-index \
    --only-binary :all: --find-links "$archive/wheels" --constraint "$archive/requirements.lock" "nightread[cluster]"
"$target/bin/nightread" --help >/dev/null
cp "$archive/SHA256SUMS" "$target/SHA256SUMS"
echo "Installed. Next: $target/bin/nightread doctor"
