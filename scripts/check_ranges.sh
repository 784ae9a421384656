#!/usr/bin/env bash
# Tries the ends of the ranges in pyproject.toml, without constraints.txt:
#   scripts/check_ranges.sh PYTHON [FOLDER] [lowest] [newest]
# PYTHON makes the environments. Each end gets one of its own in FOLDER (several gigabytes where no
# CPU build of torch can be had), makes the demo, and runs the tests that use what the ranges name.
set -euo pipefail
python=$(realpath --no-symlinks "${1:?usage: scripts/check_ranges.sh PYTHON [FOLDER] [END...]}")
cd "$(dirname "$0")/.."
folder=${2:-build/ranges}
ends=("${@:3}")
[ ${#ends[@]} -gt 0 ] || ends=(lowest newest)
extras=cpu,export,quantize,ship,tensorrt-rtx,dev
tests=(
    tests/test_cli.py tests/configs tests/commands/test_doctor.py
    tests/export/checkpoints tests/export/test_tracing.py
    tests/calibration/test_quantization.py tests/calibration/test_calibrator.py
    tests/engines/ort/test_cpu.py tests/engines/bundles tests/plugins/cuda/test_compilation.py
    tests/runtime/output tests/runtime/prompting/test_timeline.py
)

say() { echo "ranges: $*"; }

torch_requirement() { sed -n 's/.*"\(torch>=[^"]*\)".*/\1/p' pyproject.toml; }

# First and alone, as in scripts/environment.sh: a CPU build if there is one.
install_torch() {
    uv pip install -q --resolution "$resolution" --torch-backend=cpu "$(torch_requirement)" &&
        return
    say "$end: no CPU build of torch can be had: taking the default one"
    uv pip install -q --resolution "$resolution" "$(torch_requirement)"
}

check() {
    local end=$1 resolution
    case $end in
    lowest) resolution=lowest-direct ;;
    newest) resolution=highest ;;
    *) say "error: $end is neither lowest nor newest" >&2 && exit 2 ;;
    esac
    export VIRTUAL_ENV=$folder/$end
    uv venv -q --clear --python "$python" "$VIRTUAL_ENV"
    install_torch
    uv pip install -q --resolution "$resolution" -e ".[$extras]"
    uv pip freeze >"$folder/$end.txt"
    say "$end: $(wc -l <"$folder/$end.txt") packages, listed in $folder/$end.txt"
    "$VIRTUAL_ENV/bin/python" cli.py demo --out "$folder/$end-demo"
    # Newer packages announce what they will take away: that is no fault of a range.
    "$VIRTUAL_ENV/bin/python" -m pytest -q -W default -m "not exhaustive" "${tests[@]}"
    say "$end: good"
}

mkdir -p "$folder"
folder=$(realpath "$folder")
"$python" -m venv "$folder/uv"
"$folder/uv/bin/python" -m pip --disable-pip-version-check install -q -c constraints.txt uv
PATH=$folder/uv/bin:$PATH
for end in "${ends[@]}"; do
    check "$end"
done
