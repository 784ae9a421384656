"""How fast every preset is on this machine's CPU, and what memory it takes.

    python -m benchmarks.quality.speeds         # 6 to 8 minutes on two cores, nothing else running
    python -m benchmarks.quality.presets        # writes the page with it

Presets take turns, each in a process of its own, --rounds times; medians count. Presets that run
the same way are measured once.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, pstdev
from tempfile import TemporaryDirectory
from typing import Any

import longlive_trt as ll
from benchmarks.harness import RESULTS, ROOT, command, cpu_name, parser, write_report
from longlive_trt.configs import load_preset
from longlive_trt.configs.dump import config_values
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.runtime.presets import runtime_config, served_presets

RESULT = RESULTS / "presets_speed_cpu.json"
BASE = "balanced"
_ROUNDS = 3
_AS_LONG_AS = ("--blocks", "8", "--switches", "0", "--seconds", "5", "--warmup", "4")


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("--rounds", type=int, default=_ROUNDS)
    given = options.parse_args()
    with ll.load("demo") as pipeline:
        alike = groups(pipeline.bundle)
    reports: dict[str, list[Mapping[str, Any]]] = {group[0]: [] for group in alike}
    with TemporaryDirectory() as folder:
        for number in range(given.rounds):
            for name, found in reports.items():
                found.append(_bench(name, Path(folder) / f"{name}-{number}.json"))
                print(f"round {number + 1}: {name}", flush=True)
    presets = {name: speeds(reports[group[0]]) for group in alike for name in group}
    report = {"command": command(), "machine": cpu_name(), "rounds": given.rounds}
    write_report({**report, "presets": dict(sorted(presets.items()))}, RESULT)


def groups(bundle: Bundle) -> list[list[str]]:
    """Presets that run the same way, together."""
    alike: dict[str, list[str]] = {}
    for name in sorted(served_presets(bundle), key=lambda name: (name != BASE, name)):
        preset = load_preset(name)
        config = config_values(runtime_config(bundle.config, name))
        way = json.dumps([config, preset.build.decoder, preset.low_memory], sort_keys=True)
        alike.setdefault(way, []).append(name)
    return list(alike.values())


def _bench(name: str, out: Path) -> Mapping[str, Any]:
    arguments = ["bench", "--bundle", "demo", "--preset", name, *_AS_LONG_AS, "--out", str(out)]
    program = [sys.executable, "-m", "longlive_trt", *arguments]
    subprocess.run(program, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    report: Mapping[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return report


def speeds(reports: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians over reports of `bench`."""
    bundles = [report["bundles"][0] for report in reports]
    rates = [b["video_frames_per_s"].get("overlapped") or 0 for b in bundles]
    memory = [
        max(phase["process_bytes"]["max"] for phase in report["resources"].values())
        for report in reports
    ]
    states = {
        part: [b["steady_state_ms"][part] for b in bundles]
        for part in ("transformer", "vae", "block")
    }
    return {
        **{f"{part}_ms": round(median(s["p50"] for s in all_), 1) for part, all_ in states.items()},
        "block_p99_ms": round(max(s["p99"] for s in states["block"]), 1),
        "frames_per_s": round(median(rates), 2),
        "spread": round(pstdev([s["p50"] for s in states["block"]]), 1),
        "memory_gib": round(max(memory) / 2**30, 2),
    }


if __name__ == "__main__":
    main()
