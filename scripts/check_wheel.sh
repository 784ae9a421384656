#!/usr/bin/env bash
# Builds the wheel and tries it where no checkout is near:  scripts/check_wheel.sh PYTHON
set -euo pipefail
python=$(realpath --no-symlinks "${1:?usage: scripts/check_wheel.sh PYTHON}")
cd "$(dirname "$0")/.."
root=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

echo "wheel: building (the source archive first, then the wheel from it)"
"$python" -m build --no-isolation --outdir "$scratch/dist" "$root" >"$scratch/build.log" 2>&1 || {
    cat "$scratch/build.log" >&2
    exit 1
}
wheel=$(echo "$scratch"/dist/*.whl)
"$python" "$root/scripts/wheel_contents.py" "$wheel" "$root"

export PATH="$scratch/venv/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH
install() { python -m pip install -q -c "$root/constraints.txt" "$1"; }
fail() {
    echo "wheel: error: $*" >&2
    exit 1
}

echo "wheel: building a bundle with the checkout"
"$python" cli.py export --config tiny --random-weights 0 --no-check --out "$scratch/onnx" \
    >/dev/null 2>&1
"$python" cli.py build --onnx "$scratch/onnx" --out "$scratch/bundle" 2>/dev/null

echo "wheel: installing $(basename "$wheel") without an engine, in an empty folder"
mkdir "$scratch/empty"
cd "$scratch/empty"
"$python" -m venv "$scratch/venv"
install "$wheel"
generate=(longlive-trt generate --bundle "$scratch/bundle" --prompt "A red kite over the sea"
    --frames 6 --out video.mp4)
longlive-trt --version
longlive-trt --help >/dev/null
longlive-trt doctor >/dev/null
longlive-trt inspect "$scratch/bundle" >/dev/null
message=$("${generate[@]}" 2>&1) && fail "generate ran without an engine"
echo "$message"
pattern="^error: this needs onnxruntime, which is not installed: pip install '$wheel\[(cpu|gpu)\]'$"
[[ $message =~ $pattern ]] || fail "this should be one line with the command that adds an engine"

echo "wheel: adding the engine for CPUs"
install "$wheel[cpu]"
longlive-trt doctor
python - <<'PYTHON'
from pathlib import Path

import longlive_trt
from longlive_trt import configs, engines, plugins, runtime

assert "site-packages" in Path(longlive_trt.__file__).parts, longlive_trt.__file__
assert configs.load_config("longlive-1.3b").name == "longlive-1.3b"
for area in (configs, engines, plugins, runtime):
    assert Path(area.__file__).is_relative_to(Path(longlive_trt.__file__).parent), area
PYTHON

echo "wheel: making a video with it"
! python -c "import torch" 2>/dev/null || fail "torch must not be here"
"${generate[@]}"
test -s video.mp4 && test -s video.mp4.json

echo "wheel: making the demo with it"
XDG_CACHE_HOME="$scratch/cache" longlive-trt demo --out demo
test -s demo/video.mp4 && test -s demo/sheet.png

mkdir -p "$root/dist"
cp "$scratch"/dist/* "$root/dist/"
echo "wheel: good; kept in dist/"
