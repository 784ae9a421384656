"""What a fleet does, tried under a real Ray on one machine: 4 hosts of 2 slots.

    python -m benchmarks.fleet.trial --out docs/results/fleet_ray_cpu.json
    python -m benchmarks.fleet.trial --bundle demo --hosts 2 --blocks 6 --only drain kill --out FILE

Without --bundle a model that paints at once stands in, so that the fleet is what is measured.
"""

import asyncio
import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.fleet.painter import Painter
from benchmarks.fleet.processes import Busyness
from benchmarks.fleet.stage import HOSTS, SLOTS, Audience, Trial
from benchmarks.fleet.viewer import Viewer
from benchmarks.harness import command, cpu_name, parser, percentiles, rounded, write_report
from longlive_trt.fleet import BundleLoader
from longlive_trt.serving.cluster.on_ray.running import deploy, free_port, started
from longlive_trt.serving.cluster.placement import Scaling
from longlive_trt.serving.cluster.settings import FleetSettings
from longlive_trt.serving.cluster.store.registry import Registry
from longlive_trt.serving.engine import LiveModel
from longlive_trt.serving.settings import Limits, Settings

COMMANDS = 1000
COMMAND_EVERY_S = 1.0
_WHOLE = {"prompt": "a red car in the city", "seconds": 600, "seed": 7}
_PART = 10
"""Of a hundred: then something happens."""


async def place(trial: Trial) -> dict[str, Any]:
    """Eight sessions, and a ninth."""
    async with Audience(trial, trial.count * SLOTS) as viewers:
        await trial.until(_are_all_full, 10)
        spread = sorted(host["running"] for host in await trial.hosts())
        ninth = trial.viewer(99)
        watching = asyncio.create_task(ninth.watch())
        await asyncio.sleep(2)
        waited = {"positions": ninth.positions, "has_begun": ninth.running.is_set()}
        begun = time.monotonic()
        await viewers[0].stop()
        await asyncio.wait_for(ninth.running.wait(), 20)
        admitted_s = time.monotonic() - begun
        await ninth.stop()
        await watching
    return {
        "sessions_by_host": spread,
        "ninth_waits": waited,
        "ninth_is_in_after_s": round(admitted_s, 3),
    }


async def steer(trial: Trial) -> dict[str, Any]:
    """Commands to all sessions at once, each answered by its owner."""
    each = COMMANDS // (trial.count * SLOTS)
    async with Audience(trial, trial.count * SLOTS) as viewers:
        busy, begun = Busyness(), time.monotonic()
        times = await asyncio.gather(*(_steer_one(viewer, each) for viewer in viewers))
        shares = busy.shares(time.monotonic() - begun)
        owners = Counter([trial.owner(viewer) for viewer in viewers])
    ms = [value * 1000 for one in times for value in one]
    return {
        "sent": each * len(viewers),
        "answered_by_their_session": len(ms),
        "sessions_by_owner": sorted(owners.values()),
        "round_trip_ms": percentiles(ms, (50, 95, 99)),
        "share_of_a_core": shares,
    }


async def _steer_one(viewer: Viewer, count: int) -> list[float]:
    sent: dict[str, float] = {}
    times: list[float] = []
    all_back = asyncio.Event()

    def heard(message: dict[str, Any]) -> None:
        if message["type"] == "session.interaction.queued":
            times.append(time.monotonic() - sent.pop(message["event_id"]))
            if len(times) == count:
                all_back.set()

    viewer.on_message = heard
    for number in range(count):
        name = f"{viewer.began['session']}.{number}"
        sent[name] = time.monotonic()
        await viewer.send("session.interaction", prompt=f"prompt {number}", event_id=name)
        await asyncio.sleep(COMMAND_EVERY_S)
    await asyncio.wait_for(all_back.wait(), 60)
    return times


async def drain(trial: Trial) -> dict[str, Any]:
    """Both sessions of a host go to others."""
    async with Audience(trial, trial.count * SLOTS - 2) as viewers:
        await _prompted(trial, viewers)
        host = trial.fullest(viewers)
        moved = [viewer for viewer in viewers if trial.owner(viewer) == host]
        before = time.monotonic()
        answer = await asyncio.to_thread(trial.ask, "POST", f"/v1/admin/hosts/{host}/drain")
        drained_s = time.monotonic() - before
        await _until(lambda: all(viewer.seen.moves for viewer in moved), 180)
        await _for_blocks(moved, trial.blocks)
        compared = [await _compared(trial, viewer) for viewer in moved]
        await asyncio.to_thread(trial.ask, "POST", f"/v1/admin/hosts/{host}/drain?undo=true")
        return {
            "sessions_on_the_host": len(moved),
            "states_saved": len(answer["saved"]),
            "drain_call_s": round(drained_s, 3),
            "moved_after_s": [viewer.seen.moves[0]["after_s"] for viewer in moved],
            "pictures_lost": [viewer.seen.gaps for viewer in moved],
            "others_noticed": sum(len(v.seen.moves) for v in viewers if v not in moved),
            "compared_with_one_host": compared,
        }


async def kill(trial: Trial) -> dict[str, Any]:
    """SIGKILL to a host's process."""
    async with Audience(trial, trial.count * SLOTS - 2) as viewers:
        await _prompted(trial, viewers)
        await asyncio.sleep(trial.fleet.save_every_s + 2)
        name = trial.fullest(viewers)
        host = next(host for host in await trial.hosts() if host["name"] == name)
        lost = [viewer for viewer in viewers if trial.owner(viewer) == name]
        os.kill(int(host["node"].rpartition(":")[2]), signal.SIGKILL)
        await _until(lambda: all(viewer.seen.moves for viewer in lost), 180)
        await _for_blocks(lost, trial.blocks)
        compared = [await _compared(trial, viewer) for viewer in lost]
        begun = time.monotonic()
        await trial.until(lambda hosts: len(hosts) == trial.count, 120)
        return {
            "sessions_on_the_host": len(lost),
            "save_every_s": trial.fleet.save_every_s,
            "message": lost[0].seen.moves[0]["message"],
            "moved_after_s": [viewer.seen.moves[0]["after_s"] for viewer in lost],
            "blocks_made_again": [viewer.seen.moves[0]["made_again"] for viewer in lost],
            "pictures_lost": [viewer.seen.gaps for viewer in lost],
            "compared_with_one_host": compared,
            "host_replaced_after_s": round(time.monotonic() - begun + 5, 1),
        }


async def videos(trial: Trial) -> dict[str, Any]:
    """A whole video that nothing happens to, one whose host is emptied, and one whose host dies."""
    files, notes = {}, {}
    for what in ("nothing", "drain", "kill"):
        video = (await trial.post("/v1/videos", _WHOLE))["id"]
        await trial.until_video(video, lambda now: now["progress"] >= _PART)
        owner = Registry(trial.fleet.store).newest(video)
        assert owner is not None
        if what == "drain":
            await asyncio.to_thread(trial.ask, "POST", f"/v1/admin/hosts/{owner.host}/drain")
        if what == "kill":
            host = next(one for one in await trial.hosts() if one["name"] == owner.host)
            os.kill(int(host["node"].rpartition(":")[2]), signal.SIGKILL)
        done = await trial.until_video(video, lambda now: now["status"] == "completed")
        files[what] = await asyncio.to_thread(trial.read, f"/v1/videos/{video}/content")
        notes[what] = done["note"]
        if what == "drain":
            undo = f"/v1/admin/hosts/{owner.host}/drain?undo=true"
            await asyncio.to_thread(trial.ask, "POST", undo)
    await trial.until(lambda hosts: len(hosts) == trial.count, 120)
    return {
        "seconds": _WHOLE["seconds"],
        "bytes": len(files["nothing"]),
        "same_file": {what: files[what] == files["nothing"] for what in ("drain", "kill")},
        "note": {what: notes[what] for what in ("drain", "kill")},
    }


async def redeploy(trial: Trial) -> dict[str, Any]:
    """The next version of gateway and hosts, while all slots are taken."""
    async with Audience(trial, trial.count * SLOTS) as viewers:
        await asyncio.sleep(3)
        before = {viewer.began["session"] for viewer in viewers}
        pacing = replace(trial.settings.pacing, margin_s=trial.settings.pacing.margin_s + 0.001)
        trial.settings = replace(trial.settings, pacing=pacing)
        begun = time.monotonic()
        await asyncio.to_thread(deploy, trial.settings, trial.fleet, trial.load)
        deployed_s = time.monotonic() - begun
        shown = [viewer.seen.blocks for viewer in viewers]
        await _until(
            lambda: all(v.seen.blocks > then + 3 for v, then in zip(viewers, shown, strict=True)),
            120,
        )
        pauses = [pause for viewer in viewers for pause in viewer.seen.pauses_s]
        return {
            "deployed_in_s": round(deployed_s, 1),
            "sessions_before": len(before),
            "sessions_after": len(before & {viewer.began["session"] for viewer in viewers}),
            "done_early": sum(viewer.done is not None for viewer in viewers),
            "moves": [len(viewer.seen.moves) for viewer in viewers],
            "comebacks": [viewer.seen.comebacks for viewer in viewers],
            "pictures_lost": sum(viewer.seen.gaps for viewer in viewers),
            "pauses_s": rounded(sorted(pauses), 2),
            "faults": sorted({fault for viewer in viewers for fault in viewer.seen.faults}),
        }


async def scale(trial: Trial) -> dict[str, Any]:
    """From one host on, as viewers come."""
    trial.fleet = replace(trial.fleet, scaling=Scaling(1, trial.count))
    await asyncio.to_thread(deploy, trial.settings, trial.fleet, trial.load)
    await trial.until(lambda hosts: len(hosts) == 1, 120)
    begun = time.monotonic()
    async with Audience(trial, SLOTS + 2) as viewers:
        all_in_s = time.monotonic() - begun
        await trial.until(lambda hosts: len(hosts) >= SLOTS + 1, 120)
        hosts = len(await trial.hosts())
    return {
        "hosts_before": 1,
        "viewers": len(viewers),
        "all_have_a_slot_after_s": round(all_in_s, 1),
        "hosts_after": hosts,
        "slots_after": hosts * SLOTS,
    }


async def _prompted(trial: Trial, viewers: list[Viewer]) -> None:
    await _for_blocks(viewers, trial.blocks)
    for viewer in viewers:
        await viewer.send("session.interaction", prompt="a purple balloon at night")
    await _for_blocks(viewers, trial.blocks)


async def _for_blocks(viewers: list[Viewer], count: int) -> None:
    """However slow the model is here."""
    wanted = [viewer.seen.blocks + count for viewer in viewers]
    await _until(
        lambda: all(v.seen.blocks >= then for v, then in zip(viewers, wanted, strict=True)), 600
    )


async def _compared(trial: Trial, viewer: Viewer) -> dict[str, Any]:
    """The state of a video that moved, and that of one which nothing happened to."""
    session, token = viewer.began["session"], viewer.began["token"]
    path = f"/v1/sessions/{session}"
    answer = await asyncio.to_thread(trial.ask, "POST", f"{path}/state", token)
    recipe = await asyncio.to_thread(trial.ask, "GET", f"{path}/recipe", token)
    state = Path(trial.fleet.store) / "states" / f"{answer['state_id']}.state"
    beside = json.loads(state.with_suffix(".json").read_text())
    same = await asyncio.to_thread(_is_same, trial.load, recipe, beside["block"], state)
    return {"blocks": beside["block"], "prompts": len(recipe["prompts"]), "state_is_equal": same}


def _is_same(
    load: Callable[[], LiveModel], recipe: dict[str, Any], blocks: int, state: Path
) -> bool:
    model = load()
    try:
        per_block = model.facts.block_latents
        prompts = {one["frame"] // per_block: one["prompt"] for one in recipe["prompts"]}
        video = model.open(recipe["seed"], recipe["switch"])
        for block in range(blocks):
            if block in prompts:
                video.prompt(prompts[block])
            _ = video.step().latents
        with tempfile.TemporaryDirectory() as folder:
            alone = Path(folder) / "alone.state"
            video.save_state(alone)
            video.close()
            return _tensors(alone) == _tensors(state)
    finally:
        model.close()


def _tensors(path: Path) -> dict[str, bytes]:
    """A painter's states are texts; all others are tensors."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: value.tobytes() for name, value in load_file(path).items()}
    except SafetensorError:
        return {"": path.read_bytes()}


async def _until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        await asyncio.sleep(0.05)


def _are_all_full(hosts: list[dict[str, Any]]) -> bool:
    return all(host["running"] == SLOTS for host in hosts)


TRIALS: dict[str, Callable[[Trial], Awaitable[dict[str, Any]]]] = {
    "place": place,
    "steer": steer,
    "drain": drain,
    "kill": kill,
    "videos": videos,
    "redeploy": redeploy,
    "scale": scale,
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--bundle", help="a folder, or demo")
    options.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS))
    options.add_argument("--hosts", type=int, default=HOSTS)
    options.add_argument("--save-every", type=float, default=3.0)
    options.add_argument("--blocks", type=int, default=4, help="at each stage of a move")
    chosen = options.parse_args()
    load = BundleLoader(chosen.bundle) if chosen.bundle else Painter
    with tempfile.TemporaryDirectory() as folder:
        limits = Limits(prompts_per_second=50, messages_per_second=100)
        settings = Settings(sessions=SLOTS, limits=limits)
        fleet = FleetSettings(
            store=folder,
            save_every_s=chosen.save_every,
            scaling=Scaling(chosen.hosts, chosen.hosts),
            grace_s=60,
        )
        report: dict[str, Any] = {
            "command": command(),
            "machine": cpu_name(),
            "load_before": rounded(os.getloadavg(), 1),
            "model": chosen.bundle or "a painter in a model's place",
            "hosts": chosen.hosts,
            "slots_per_host": SLOTS,
        }
        port = free_port(replace(settings, port=0))
        begun = time.monotonic()
        with started(settings, fleet, port):
            deploy(settings, fleet, load)
            report["fleet_started_in_s"] = round(time.monotonic() - begun, 1)
            trial = Trial(port, settings, fleet, load, False, chosen.hosts, chosen.blocks)
            asyncio.run(_run(trial, chosen.only, report, chosen.out))
    print(json.dumps(report, indent=1))


async def _run(trial: Trial, names: list[str], report: dict[str, Any], out: Path | None) -> None:
    await trial.until(lambda hosts: len(hosts) == trial.count, 60)
    for name in names:
        report[name] = await TRIALS[name](trial)
        report["load_after"] = rounded(os.getloadavg(), 1)
        print(name, json.dumps(report[name]), flush=True)
        write_report(report, out)
        await trial.until(lambda hosts: not any(host["running"] for host in hosts), 60)


if __name__ == "__main__":
    main()
