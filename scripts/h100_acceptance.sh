#!/usr/bin/env bash
# Builds, checks and measures everything on one machine, and writes one report to send back:
#   scripts/h100_acceptance.sh OUT [--engine tensorrt|tensorrt-rtx] [--gpu smNN] [--config NAME]
#                                  [--onnx DIR] [--precisions "bf16 fp16 fp8"] [--dry-run]
# Without --onnx it exports random weights: speed and agreement do not depend on real ones.
# --dry-run compiles but runs no engine, so that a machine without a GPU can rehearse it.
set -uo pipefail

usage() {
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

out='' engine=tensorrt gpu='' config=longlive-1.3b onnx='' precisions='bf16 fp16 fp8' dry_run=no
while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) dry_run=yes && shift && continue ;;
    --engine | --gpu | --config | --onnx | --precisions)
        [ $# -ge 2 ] || usage
        name=${1#--} value=$2
        printf -v "$name" '%s' "$value"
        shift 2
        continue
        ;;
    -*) usage ;;
    esac
    [ -z "$out" ] || usage
    out=$1
    shift
done
[ -n "$out" ] || usage
case $engine in tensorrt | tensorrt-rtx) ;; *) usage ;; esac

tool=${LONGLIVE_TRT:-longlive-trt}
command -v "${tool%% *}" >/dev/null || {
    echo "acceptance: $tool is not installed: pip install 'longlive-trt[export,$engine,gpu]'" >&2
    exit 1
}
mkdir -p "$out/steps" || exit 1
rm -f "$out"/steps/* "$out/report.json"
failed=0 number=0

# step NAME COMMAND...: standard output, errors, exit code and time go to the report.
step() {
    number=$((number + 1))
    local name=$1 begun ended code base
    shift
    base=$(printf '%s/steps/%02d-%s' "$out" "$number" "$name")
    printf 'acceptance: %s ... ' "$name"
    begun=$(date +%s.%N)
    "$@" >"$base.out" 2>"$base.err"
    code=$?
    ended=$(date +%s.%N)
    printf '%s\n' "$code" "$begun" "$ended" "$*" >"$base.meta"
    if [ $code -eq 0 ]; then
        echo "done"
    else
        echo "FAILED ($code): $(tail -n 1 "$base.err")"
        failed=$((failed + 1))
    fi
    return $code
}

# For steps that run an engine.
step_on_gpu() {
    if [ $dry_run = yes ]; then
        number=$((number + 1))
        printf 'skipped\n0\n0\n%s\n' "${*:2}" >"$(printf '%s/steps/%02d-%s' "$out" "$number" "$1").meta"
        echo "acceptance: $1 ... skipped (dry run)"
        return 0
    fi
    step "$@"
}

for_engine=(--engine "$engine")
[ -z "$gpu" ] || for_engine+=(--gpu "$gpu")

step doctor $tool doctor --json
if [ -z "$onnx" ]; then
    onnx=$out/onnx
    step export $tool export --config "$config" --random-weights 1 --precision fp16 --no-check \
        --out "$onnx" || exit 1
fi
reference=$out/reference
step reference $tool build --onnx "$onnx" --precision fp16 --out "$reference"

for precision in $precisions; do
    bundle=$out/$precision
    if step "build-$precision" $tool build --onnx "$onnx" "${for_engine[@]}" \
        --precision "$precision" --out "$bundle"; then
        cp "$bundle/report.json" "$out/steps/build-$precision.report.json"
        step "files-$precision" $tool verify "$bundle" --json
        step_on_gpu "verify-$precision" $tool verify "$bundle" --against "$reference" --blocks 2 --json
        step_on_gpu "bench-$precision" $tool bench --bundle "$bundle" --json
    fi
done

if [ "$engine" = tensorrt ]; then
    first=${precisions%% *}
    step build-standard $tool build --onnx "$onnx" "${for_engine[@]}" --precision "$first" \
        --attention standard --out "$out/standard" &&
        step_on_gpu bench-standard $tool bench --bundle "$out/standard" --json
    step build-stripped $tool build --onnx "$onnx" "${for_engine[@]}" --precision "$first" \
        --strip --out "$out/stripped" &&
        step refit $tool refit "$out/stripped" --onnx "$onnx" --out "$out/refitted" &&
        step_on_gpu verify-refitted $tool verify "$out/refitted" --against "$out/$first" --blocks 2 \
            --json
fi

"${PYTHON:-python3}" - "$out" "$engine" "$dry_run" <<'PYTHON'
import json
import pathlib
import sys

out, engine, dry_run = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "yes"


def text(path):
    return path.read_text(errors="replace") if path.exists() else ""


def parsed(path):
    try:
        return json.loads(text(path))
    except ValueError:
        return text(path)[-4000:]


steps = []
for meta in sorted((out / "steps").glob("*.meta")):
    code, begun, ended, command = meta.read_text().split("\n")[:4]
    steps.append(
        {
            "step": meta.stem[3:],
            "command": command,
            "outcome": code if code == "skipped" else "done" if code == "0" else f"exit {code}",
            "seconds": round(float(ended) - float(begun), 1),
            "output": parsed(meta.with_suffix(".out")),
            "errors": text(meta.with_suffix(".err"))[-4000:],
        }
    )
reports = sorted((out / "steps").glob("*.report.json"))
builds = {path.name.split(".")[0]: json.loads(path.read_text()) for path in reports}
for build in builds.values():
    for graph in build["graphs"]:
        graph["kernels"] = len(graph.pop("layers"))
result = {"engine": engine, "dry_run": dry_run, "steps": steps, "builds": builds}
(out / "report.json").write_text(json.dumps(result, indent=1) + "\n")
PYTHON

echo "acceptance: $failed of $number steps failed; send $out/report.json"
[ "$failed" -eq 0 ]
