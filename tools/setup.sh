#!/bin/sh
# Makes the virtual environment that `make demo` and `make test` run in. Safe to run again.
set -eu
venv=$1
python=${PYTHON:-python3}

step() { printf '\033[1m[%s/4] %s\033[0m\n' "$1" "$2"; }

step 1 "virtual environment in $venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "Python 3.10 or newer is needed, $("$python" --version) is what '$python' runs"; exit 1; }
command -v g++ >/dev/null || { echo 'A C++ compiler is needed: apt install g++'; exit 1; }
[ -x "$venv/bin/pip" ] || "$python" -m venv "$venv" || {
    echo "Python's venv is missing: apt install python3-venv"; exit 1; }

step 2 'packages (about 1.2 GB on disk; under a minute on a fast line)'
"$venv/bin/pip" install --disable-pip-version-check -r requirements.txt

# Open3D links to libusb-1.0, which a fresh Debian has not; this one came with the packages.
ln -sf "$(cd "$venv"/lib/python3*/site-packages && pwd)/libusb_package/libusb-1.0.so" \
    "$venv/lib/libusb-1.0.so.0"

step 3 'type support of tf2_msgs'
"$venv/bin/python" tools/build_tf2_msgs.py

step 4 'hybrid_guidance itself'
"$venv/bin/pip" install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
echo 'ready'
