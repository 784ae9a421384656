"""What breaks first between a thousand and a hundred thousand sessions an hour.

    python -m benchmarks.fleet.simulate --out docs/results/fleet_simulation.json

Sessions come to fleets of 100 to 10,000 GPUs, stay, and leave; machines die, all of them are
replaced once (a rolling upgrade), and every start pulls a bundle. Placement is the product's own
code; the rest is a model, whose numbers are in the report.
"""

import time
from dataclasses import asdict, replace
from typing import Any

from benchmarks.fleet.world import GB, Scenario, World
from benchmarks.harness import command, parser, percentiles, write_report
from longlive_trt.configs import load_config

EGRESS_BITS_PER_S = 3e6
"""Of one viewer at 832x480, 16 pictures a second."""
VIEWERS_PER_GATEWAY_CORE = 40
"""As measured with docs/results/fleet_ray_cpu.json's fleet."""
BASE = Scenario(gpus=1000, sessions=10_000)
SIZES = (
    ("small", replace(BASE, gpus=100, sessions=1_000, gateways=2)),
    ("middle", replace(BASE, gpus=1_000, sessions=10_000, gateways=8)),
    ("large", replace(BASE, gpus=10_000, sessions=100_000, gateways=32)),
)
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("as it is", {}),
    ("states on drains only", {"save_every_s": 0.0}),
    ("a store ten times as fast", {"store_bytes_per_s": 1000 * GB}),
    ("spot machines: 5 % an hour", {"failures_per_gpu_hour": 0.05}),
    ("a fifth more people than slots", {"sessions": 1.45}),
    ("gateways that know hosts after 10 s", {"stats_s": 10.0}),
    ("always the roomiest host", {"few": 1 << 30}),
)


def simulated(scenario: Scenario) -> dict[str, Any]:
    begun = time.monotonic()
    world = World(scenario)
    counted = world.run()
    hosts = scenario.gpus
    running = counted.most_running
    periodic = (
        running * scenario.state_bytes / scenario.save_every_s if scenario.save_every_s else 0.0
    )
    return {
        "gpus": hosts,
        "sessions_that_came": counted.outcomes["came"],
        "most_at_a_time": running,
        "slots": hosts * scenario.slots,
        "first_frame_s": percentiles(counted.first_frame_s, (50, 95, 99), 2),
        "refused": counted.outcomes["refused"],
        "gave_up_waiting": counted.outcomes["gave up waiting"],
        "machines_that_died": counted.outcomes["machines that died"],
        "moves": counted.outcomes["moves"],
        "pause_s": percentiles(counted.pause_s or [0.0], (50, 95, 99), 1),
        "made_again_s": percentiles(counted.lost_s or [0.0], (50, 95), 1),
        "upgrade_took_s": _upgrade_s(scenario, counted.outcomes["upgraded after s"]),
        "placements_refused_by_hosts": counted.refused_by_hosts,
        "store": {
            "periodic_states_gb_per_s": round(periodic / GB, 1),
            "share_of_store": round(periodic / scenario.store_bytes_per_s, 2),
            "moved_and_pulled_tb": round(counted.store_bytes / 1e12, 2),
            "longest_wait_s": round(counted.store_late_s, 1),
            "save_interval_becomes_s": round(world.store.save_every_s, 1),
        },
        "egress_gbit_per_s": round(running * EGRESS_BITS_PER_S / 1e9, 2),
        "gateway_cores": -(-running // VIEWERS_PER_GATEWAY_CORE),
        "simulated_in_s": round(time.monotonic() - begun, 1),
    }


def _upgrade_s(scenario: Scenario, ended_s: int) -> int | None:
    """None where the hour was too short."""
    if scenario.upgrade_at_s is None or not ended_s:
        return None
    return ended_s - round(scenario.upgrade_at_s)


def _varied(scenario: Scenario, changes: dict[str, Any]) -> Scenario:
    changes = dict(changes)
    if "sessions" in changes:
        changes["sessions"] = round(scenario.sessions * changes["sessions"])
    return replace(scenario, **changes)


def state_bytes() -> float:
    """The keys and values of a full-size video's window in half precision: most of its state."""
    config = load_config("longlive-1.3b")
    model, rollout = config.transformer, config.rollout
    tokens = config.tokens_per_frame * rollout.window_frames
    return 2.0 * 2 * model.layers * model.heads * model.head_dim * tokens


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", choices=[name for name, _ in SIZES])
    chosen = options.parse_args()
    size_bytes = state_bytes()
    report: dict[str, Any] = {
        "command": command(),
        "model": {**asdict(BASE), "state_bytes": size_bytes},
        "egress_bits_per_s_and_viewer": EGRESS_BITS_PER_S,
        "viewers_per_gateway_core": VIEWERS_PER_GATEWAY_CORE,
        "runs": {},
    }
    for name, scenario in SIZES:
        if chosen.sizes and name not in chosen.sizes:
            continue
        sized = replace(scenario, state_bytes=size_bytes)
        report["runs"][name] = {}
        for variant, changes in VARIANTS:
            found = simulated(_varied(sized, changes))
            report["runs"][name][variant] = found
            print(name, variant, found, flush=True)
            write_report(report, chosen.out)


if __name__ == "__main__":
    main()
