"""``longlive-trt generate``."""

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from longlive_trt.cli import INTERRUPTED
from longlive_trt.commands._device import device_option
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.dump import config_values
from longlive_trt.configs.loader import configure
from longlive_trt.configs.replay import load_replay
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.errors import UsageError
from longlive_trt.runtime.generation import Outputs, Request, check_request, generate
from longlive_trt.runtime.output import check_file_output, check_output
from longlive_trt.runtime.progress import make_progress
from longlive_trt.runtime.prompting.switches import EXACT, SwitchMode
from longlive_trt.runtime.prompting.timeline import (
    Clock,
    Cue,
    Length,
    Timeline,
    length_in_frames,
    timeline_from_prompts,
)
from longlive_trt.runtime.prompting.timeline_files import recipe_settings, timeline_from_file
from longlive_trt.runtime.state import SavedState, load_state

DEFAULT_SECONDS = 5.0
_PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class Wish:
    """The options that say what to show and for how long."""

    prompt: str | None
    prompts_at: tuple[tuple[int, str], ...]
    timeline: Path | None
    line: int | None
    switch_frames: tuple[int, ...] | None
    switch: SwitchMode | None
    seconds: float | None
    frames: int | None
    seed: int | None
    replay: Path | None
    resume: Path | None


def _frame_list(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    try:
        return None if value is None else tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r}: expected numbers with commas between, such as 40,80,120"
        ) from None


def _switch_mode(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> SwitchMode | None:
    return None if value is None else SwitchMode.parse(value)


@click.command()
@click.option("--bundle", "bundle_folder", required=True, type=_PATH, help="What `build` made.")
@click.option("--prompt", help="What to show.")
@click.option(
    "--prompt-at",
    "prompts_at",
    multiple=True,
    type=(int, str),
    metavar="FRAME TEXT",
    help="Another prompt from a latent frame on; may be repeated.",
)
@click.option("--timeline", type=_PATH, help="YAML, JSON or JSONL file with prompts and times.")
@click.option("--line", type=int, help="Which line of a JSONL timeline.  [default: 1]")
@click.option(
    "--switch-frames",
    callback=_frame_list,
    metavar="N,N,...",
    help="Where a JSONL line's prompts begin.  [default: spread evenly]",
)
@click.option(
    "--switch",
    callback=_switch_mode,
    metavar="MODE",
    help="How prompts change: exact recomputes what the video remembers, partial what the next "
    "block sees of it, none nothing; blend:N mixes the prompts over N blocks.  [default: exact, "
    "or as in the resumed run]",
)
@click.option("--seconds", type=float, help="Length of the video, or inf.  [default: 5]")
@click.option("--frames", type=int, help="Length in latent frames instead.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="[default: 0]")
@click.option("--out", help="video.mp4, .mov or .gif, or a folder for PNG files.")
@click.option("--latents-out", type=_PATH, help="The latents too, as safetensors.")
@click.option("--replay", type=_PATH, help="A replay file, instead of prompts and seed.")
@click.option("--save-state", type=_PATH, help="Where to keep the state at the end.")
@click.option("--resume", type=_PATH, help="A saved state to go on from.")
@click.option("--preset", help="A shipped preset, or a YAML file of settings.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override rollout.* or fps of the bundle's configuration.",
)
@device_option
@click.option(
    "--low-memory",
    is_flag=True,
    help="Hold the text encoder only while it encodes, and decode frame by frame.",
)
@click.option(
    "--debug-steady",
    is_flag=True,
    help="On a GPU: fail where a running session waits, allocates or copies.",
)
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("--quiet", "mode", flag_value="quiet", help="Show errors only.")
@click.option("--json", "mode", flag_value="json", help="Progress as JSON lines on stdout.")
def command(
    bundle_folder: Path,
    prompt: str | None,
    prompts_at: tuple[tuple[int, str], ...],
    timeline: Path | None,
    line: int | None,
    switch_frames: tuple[int, ...] | None,
    switch: SwitchMode | None,
    seconds: float | None,
    frames: int | None,
    seed: int | None,
    out: str | None,
    latents_out: Path | None,
    replay: Path | None,
    save_state: Path | None,
    resume: Path | None,
    preset: str | None,
    overrides: tuple[str, ...],
    device: DeviceChoice,
    low_memory: bool,
    debug_steady: bool,
    overwrite: bool,
    mode: str | None,
) -> int:
    """Make a video from a bundle and prompts."""
    texts = (prompt, prompts_at, timeline, line, switch_frames)
    wish = Wish(*texts, switch, seconds, frames, seed, replay, resume)
    outputs = Outputs(out, latents_out, save_state, overwrite)
    _require_sense(wish, outputs)
    bundle = open_bundle(bundle_folder)
    wish = _as_recipe_says(wish, bundle)
    resumed = load_state(resume) if resume else None
    base = resumed.config if resumed else bundle.config
    config = _runtime_config(base, preset, overrides)
    request, notices = _request(bundle, config, wish, outputs, resumed)
    request = replace(request, device=device, low_memory=low_memory, debug=debug_steady)
    check_request(bundle, request)
    _check_outputs(outputs, request.batch, inputs=(timeline, replay))
    with make_progress(mode or "auto") as progress:  # type: ignore[arg-type]
        for notice in notices:
            progress.notice(notice)
        interrupted = generate(bundle, request, progress)
    return INTERRUPTED if interrupted else 0


def _as_recipe_says(wish: Wish, bundle: Bundle) -> Wish:
    """A recipe's own settings, where the command line says nothing else."""
    recipe = recipe_settings(wish.timeline) if wish.timeline is not None else None
    if recipe is None:
        return wish
    if recipe.bundle_key != bundle.manifest.key:
        raise UsageError(
            f"{wish.timeline}: made with another bundle (key {recipe.bundle_key[:12]}, this one is "
            f"{bundle.manifest.key[:12]}); use that one, or give its prompts as a list"
        )
    has_length = wish.seconds is not None or wish.frames is not None
    return replace(
        wish,
        seed=recipe.seed if wish.seed is None and wish.resume is None else wish.seed,
        switch=wish.switch or SwitchMode.parse(recipe.switch),
        frames=wish.frames if has_length else recipe.frames,
    )


def _require_sense(wish: Wish, outputs: Outputs) -> None:
    """Refuse options that contradict each other."""
    if not (outputs.video or outputs.latents):
        raise UsageError("nowhere to put the result: give --out video.mp4, or --latents-out FILE")
    texts = {
        "--prompt": wish.prompt is not None or wish.prompts_at,
        "--timeline": wish.timeline,
        "--replay": wish.replay,
    }
    given = [option for option, value in texts.items() if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: give one of them")
    if not given and wish.resume is None:
        raise UsageError("nothing to show: give --prompt TEXT, --timeline FILE or --replay FILE")
    if wish.prompts_at and wish.prompt is None and wish.resume is None:
        raise UsageError("--prompt-at: give --prompt TEXT too, for the beginning")
    if wish.resume and wish.seed is not None:
        raise UsageError("--resume goes on with the saved seed: leave out --seed")
    if wish.replay and (wish.seconds is not None or wish.frames is not None or wish.resume):
        raise UsageError("--replay fixes the length: leave out --seconds, --frames and --resume")
    if wish.replay and outputs.state:
        raise UsageError(
            "--replay takes its noise from the file, and a state has a seed: leave out --save-state"
        )
    if wish.timeline is None and (wish.line is not None or wish.switch_frames):
        raise UsageError("--line and --switch-frames belong to --timeline FILE.jsonl")


def _runtime_config(
    base: ModelConfig, preset: str | None, overrides: tuple[str, ...]
) -> ModelConfig:
    """The bundle's configuration, with what can change without new engines."""
    wanted = configure(config_values(base), origin="the bundle", preset=preset, overrides=overrides)
    fixed = replace(wanted, rollout=replace(wanted.rollout, rope=base.rollout.rope), fps=base.fps)
    if replace(fixed, rollout=base.rollout) != base or wanted.rollout.rope != base.rollout.rope:
        raise UsageError(
            "--set and --preset can change rollout.* (but not rollout.rope) and fps; everything "
            "else is compiled into the bundle: export and build again"
        )
    return wanted


def _request(
    bundle: Bundle,
    config: ModelConfig,
    wish: Wish,
    outputs: Outputs,
    resumed: SavedState | None,
) -> tuple[Request, tuple[str, ...]]:
    command_line = shlex.join(["longlive-trt", *sys.argv[1:]])
    block_frames = config.rollout.frames_per_block
    switch = wish.switch or (resumed.switch if resumed else EXACT)
    if wish.replay is not None:
        replay = load_replay(wish.replay, config)
        blocks = replay.frames // block_frames
        request = Request(
            config, outputs, blocks, switch=switch, replay=replay, command=command_line
        )
        return request, ()
    if resumed is not None:
        _require_same_bundle(bundle, resumed, wish.resume)
    length = _length(config, wish, resumed)
    if length.latent_frames is None and outputs.latents is not None:
        raise UsageError("--latents-out keeps all latents in memory: give it a finite --seconds")
    done = resumed.next_frame if resumed else 0
    total = None if length.latent_frames is None else done + length.latent_frames
    factor = config.temporal_factor
    clock = Clock(config.fps, factor, block_frames, total)
    timeline = _timeline(wish, clock, resumed)
    request = Request(
        config,
        outputs,
        None if length.latent_frames is None else length.latent_frames // block_frames,
        starts=_starts(timeline, block_frames, resumed) if timeline else (),
        switch=switch,
        seed=resumed.seed if resumed else wish.seed or 0,
        resumed=resumed,
        command=command_line,
    )
    return request, (*length.notices, *(timeline.notices if timeline else ()))


def _length(config: ModelConfig, wish: Wish, resumed: SavedState | None) -> Length:
    seconds, frames = wish.seconds, wish.frames
    if seconds is None and frames is None:
        seconds = DEFAULT_SECONDS
    if resumed and seconds is not None and 0 < seconds < math.inf:
        # Only a video's very first latent frame gives a single picture.
        frames, seconds = math.ceil(seconds * config.fps / config.temporal_factor), None
    factor = config.temporal_factor
    block_frames = config.rollout.frames_per_block
    return length_in_frames(seconds, frames, config.fps, factor, block_frames)


def _timeline(wish: Wish, clock: Clock, resumed: SavedState | None) -> Timeline | None:
    if wish.timeline is not None:
        return timeline_from_file(
            wish.timeline, clock, line=wish.line, switch_frames=wish.switch_frames
        )
    first = wish.prompt if wish.prompt is not None or resumed is None else resumed.prompt
    if first is None or (resumed and wish.prompt is None and not wish.prompts_at):
        return None
    return timeline_from_prompts(first, wish.prompts_at, clock)


def _starts(timeline: Timeline, block_frames: int, resumed: SavedState | None) -> list[Cue]:
    """The switches still to come. What a resumed video should show by now, it takes at once."""
    starts = list(timeline.starts(block_frames))
    if resumed is None:
        return starts
    now = resumed.next_frame
    past = [cue for cue in starts if cue.frame < now]
    coming = [cue for cue in starts if cue.frame >= now]
    is_due = past and past[-1].prompt != resumed.prompt
    if is_due and not (coming and coming[0].frame == now):
        coming.insert(0, Cue(now, past[-1].prompt))
    return coming


def _require_same_bundle(bundle: Bundle, resumed: SavedState, path: Path | None) -> None:
    if resumed.bundle_key != bundle.manifest.key:
        raise UsageError(
            f"{path}: saved with another bundle (key {resumed.bundle_key[:12]}, this one is "
            f"{bundle.manifest.key[:12]}); resume with the bundle that made it"
        )


def _check_outputs(outputs: Outputs, batch: int, inputs: Sequence[Path | None]) -> None:
    read = [path.resolve() for path in inputs if path is not None]
    given = [
        Path(path).resolve() for path in (outputs.video, outputs.latents, outputs.state) if path
    ]
    for path in given:
        if path in read:
            raise UsageError(f"{path}: read by this run, so it cannot be its output too")
        if given.count(path) > 1:
            raise UsageError(f"{path}: two outputs of this name; give each a name of its own")
    for video in outputs.videos(batch):
        if video is not None:
            check_output(video, outputs.overwrite)
    for file in (outputs.latents, outputs.state):
        if file is not None:
            check_file_output(file, outputs.overwrite)
