"""The tables of ``docs/fleet.md``.

    python -m benchmarks.fleet.pages

They come from what was measured: ``docs/results/fleet_*.json``.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, ROOT, parser, replace_table

PAGE = ROOT / "docs" / "fleet.md"


def simulation_rows(report: dict[str, Any]) -> list[str]:
    rows = [
        "| GPUs, sessions an hour | | at a time | first frame p95, p99 | gave up | moves "
        "| pause p50, p95 | refused by hosts | periodic states | upgrade |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for runs in report["runs"].values():
        for variant, run in runs.items():
            name = f"{run['gpus']:,}, {run['sessions_that_came']:,}"
            first, pause, store = run["first_frame_s"], run["pause_s"], run["store"]
            upgrade = run["upgrade_took_s"]
            rows.append(
                f"| {name} | {variant} | {run['most_at_a_time']:,} "
                f"| {first['p95']:.1f} s, {first['p99']:.1f} s | {run['gave_up_waiting']} "
                f"| {run['moves']:,} | {pause['p50']:.0f} s, {pause['p95']:.0f} s "
                f"| {run['placements_refused_by_hosts']:,} "
                f"| {store['periodic_states_gb_per_s']:.0f} GB/s, {store['share_of_store']:.0%} "
                f"| {'not within the hour' if upgrade is None else f'{upgrade / 60:.0f} min'} |"
            )
    return rows


def trial_rows(report: dict[str, Any], steered: dict[str, Any]) -> list[str]:
    place, steer = report["place"], steered["steer"]
    redeploy, whole = report["redeploy"], report["videos"]
    trip, shares = steer["round_trip_ms"], steer["share_of_a_core"]
    pauses = redeploy["pauses_s"]
    return [
        "| | |",
        "|---|---|",
        f"| 8 sessions | {' + '.join(map(str, place['sessions_by_host']))} on the hosts; the ninth "
        f"waits, and is in {place['ninth_is_in_after_s']:.1f} s after somebody leaves |",
        f"| {steer['sent']:,} prompts, one a second in each session | "
        f"{steer['answered_by_their_session']:,} answered by their session's owner; there and back "
        f"{trip['p50']:.0f} ms (p50), {trip['p95']:.0f} ms (p95), at a load of "
        f"{_load(steered)}; of a core the gateway took {shares['Gateway'][0]:.0%}, Ray's proxy "
        f"{shares['ProxyActor'][0]:.0%}, each host {shares['Host'][-1]:.0%} |",
        *move_rows(report),
        f"| whole videos of {whole['seconds']} s | {_became('emptied', whole['note']['drain'])}; "
        f"{_became('killed', whole['note']['kill'])}; the same file, byte for byte, as one that "
        f"nothing happened to: {sum(whole['same_file'].values())} of {len(whole['same_file'])} |",
        f"| a new version of all of it, with all slots taken | {redeploy['sessions_after']} of "
        f"{redeploy['sessions_before']} sessions go on; viewers wait {pauses[0]:.1f} to "
        f"{pauses[-1]:.1f} s at each change; {redeploy['pictures_lost']} pictures lost |",
    ]


def move_rows(report: dict[str, Any]) -> list[str]:
    drain, kill = report["drain"], report["kill"]
    return [
        f"| a host is emptied | {_sessions(drain)} elsewhere after "
        f"{_spread(drain['moved_after_s'])}; {sum(drain['pictures_lost'])} pictures lost; "
        f"{_equal(drain)} |",
        f"| a host's process is killed (states every {kill['save_every_s']:g} s) | "
        f"{_sessions(kill)} elsewhere after {_spread(kill['moved_after_s'])}, "
        f"{sum(kill['blocks_made_again'])} blocks made again; "
        f"{sum(kill['pictures_lost'])} pictures lost; {_equal(kill)} |",
    ]


def churn_rows(reports: list[dict[str, Any]]) -> list[str]:
    rows = [
        "| minutes | sessions | ended otherwise than by their viewers | hosts killed | moves "
        "| pause p50, p95 | blocks | pictures lost | memory once recordings go |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        sessions, pause = report["sessions"], report["move_pause_s"]
        early = sessions["begun"] - sessions["ended: stopped"]
        rows.append(
            f"| {report['minutes']:.0f} | {sessions['begun']} | {early} | {report['kills']} "
            f"| {sessions['moves']} | {pause['p50']:.1f} s, {pause['p95']:.1f} s "
            f"| {sessions['blocks']:,} | {sessions['pictures lost']} "
            f"| {_growth(report['growth_mib'])} |"
        )
    return rows


def _growth(grown: dict[str, dict[str, float]]) -> str:
    parts = [
        f"{role} {_range([f'{value:+.1f}' for value in values.values()])} MiB"
        for role, values in grown.items()
        if values
    ]
    return ", ".join(parts) or "-"


def _spread(values: list[float]) -> str:
    return f"{_range([f'{value:.2f}' for value in values])} s"


def _range(values: list[str]) -> str:
    low, high = min(values, key=float), max(values, key=float)
    return low if low == high else f"{low} to {high}"


def _became(what: str, note: str | None) -> str:
    """Of a whole video whose host was emptied or killed."""
    if note is None:
        return f"one was done when its host had been {what}"
    way = "made again" if "made it again" in note else "gone on with from its newest state"
    return f"one was {way} when its host had been {what}"


def _sessions(run: dict[str, Any]) -> str:
    count = run["sessions_on_the_host"]
    return f"{count} session{'' if count == 1 else 's'}"


def _load(report: dict[str, Any]) -> str:
    low, high = sorted((report["load_before"][0], report["load_after"][0]))
    return f"{low:g} to {high:g}"


def _equal(run: dict[str, Any]) -> str:
    compared = run["compared_with_one_host"]
    blocks = [one["blocks"] for one in compared]
    same = sum(one["state_is_equal"] for one in compared)
    return (
        f"states after {_range(list(map(str, blocks)))} blocks equal to one host's, bit for bit: "
        f"{same} of {len(compared)}"
    )


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(RESULTS / name).read_text(encoding="utf-8"))
    return found


def main() -> None:
    parser(__doc__, out=False).parse_args()
    replace_table(PAGE, "fleet-simulation", simulation_rows(_read("fleet_simulation.json")))
    replace_table(PAGE, "fleet-churn", churn_rows([_read("fleet_churn_cpu.json")]))
    steered = _read("fleet_steer_cpu.json")
    replace_table(PAGE, "fleet-trial", trial_rows(_read("fleet_ray_cpu.json"), steered))
    demo = _read("fleet_demo_cpu.json")
    replace_table(PAGE, "fleet-demo", ["| | |", "|---|---|", *move_rows(demo)])


if __name__ == "__main__":
    main()
