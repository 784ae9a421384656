#!/bin/sh
# Makes or updates the development environment:  scripts/environment.sh FOLDER [cpu|cuda]
# Plain sh on purpose: a fresh machine has only python3 with venv, and make.
set -eu
cd "$(dirname "$0")/.."
venv=${1:?usage: scripts/environment.sh FOLDER [cpu|cuda]}
torch_build=${2:-}
torch_version=$(sed -n 's/^torch==//p' constraints.txt)

say() { echo "environment: $*"; }
fail() {
    echo "environment: error: $*" >&2
    exit 1
}

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    candidates=${PYTHON:-python3 python3.13 python3.12 python3.11}
    for candidate in $candidates; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11, 3.12 or 3.13 found (tried: $candidates); install one or set PYTHON="
}

make_venv() {
    python=$(find_python)
    say "creating $venv with $("$python" --version)"
    "$python" -m venv "$venv" ||
        fail "$python cannot create $venv; on Debian and Ubuntu: sudo apt-get install python3-venv"
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

has_torch() {
    "$venv/bin/python" - "$torch_version" "$torch_build" <<'PYTHON'
import sys
from importlib import metadata

wanted, build = sys.argv[1:]
try:
    version, _, label = metadata.version("torch").partition("+")
except metadata.PackageNotFoundError:
    sys.exit(1)
fits = {"": True, "cpu": label == "cpu", "cuda": label != "cpu"}[build]
sys.exit(not (version == wanted and fits))
PYTHON
}

install_cpu_torch() {
    say "torch $torch_version: looking for its CPU build"
    pip install -c constraints.txt "torch==$torch_version+cpu" 2>/dev/null && return
    say "pip is not set up to find it: asking uv, which knows where CPU builds are kept"
    pip install -c constraints.txt uv &&
        "$venv/bin/uv" pip install --python "$venv/bin/python" --torch-backend=cpu \
            -c constraints.txt "torch==$torch_version" && return
    say "no CPU build can be had: installing the default one (with CUDA, several gigabytes)"
    install_default_torch
}

install_default_torch() {
    pip install -c constraints.txt "torch==$torch_version"
}

# First and alone: whatever depends on torch would otherwise choose the build for us.
install_torch() {
    case $torch_build in
    cuda)
        say "torch $torch_version: the default build, with CUDA"
        pip uninstall -q -y torch
        install_default_torch
        ;;
    *) install_cpu_torch ;;
    esac
}

is_installed() {
    ls -d "$venv"/lib/python*/site-packages/"$1"-*.dist-info >/dev/null 2>&1
}

# The engine for GPUs comes with torch for GPUs, and stays until a CPU build is asked for.
choose_engine() {
    case $torch_build in
    cuda) engine=gpu ;;
    cpu) engine=cpu ;;
    *) engine=$(is_installed onnxruntime_gpu && echo gpu || echo cpu) ;;
    esac
}

# The two packages write the same files: neither may be there when the other is installed.
make_room_for_engine() {
    other=$([ "$engine" = gpu ] && echo onnxruntime || echo onnxruntime_gpu)
    ! is_installed "$other" || pip uninstall -q -y onnxruntime onnxruntime-gpu
}

case $torch_build in
'' | cpu | cuda) ;;
*) fail "TORCH=$torch_build is neither cpu nor cuda" ;;
esac
[ -n "$torch_version" ] || fail "constraints.txt does not pin torch"
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    make_venv
elif ! is_supported "$venv/bin/python"; then
    fail "$venv holds $("$venv/bin/python" --version), not 3.11 to 3.13: remove it and try again"
fi
rm -f "$venv"/.ready*
pip install -q -c constraints.txt setuptools
has_torch || install_torch || fail "torch $torch_version cannot be installed; see above"
choose_engine
make_room_for_engine
extras=$engine,export,quantize,tensorrt-rtx,dev
say "installing longlive-trt[$extras]"
pip install --no-build-isolation -c constraints.txt -e ".[$extras]"
touch "$venv/.ready" "$venv/.ready${torch_build:+-$torch_build}"
say "$venv is ready"
