"""``longlive-trt generate``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from longlive_trt.cli import INTERRUPTED
from longlive_trt.commands._bundle import HELP as BUNDLE_HELP
from longlive_trt.commands._bundle import find_bundle
from longlive_trt.commands._device import decode_device_option, decoder_option, device_option
from longlive_trt.commands._moments import moment, moment_list
from longlive_trt.commands._numbers import real, whole
from longlive_trt.commands._reporting import command_line
from longlive_trt.commands._voice import Voice, examples, overwrite_option, speaking
from longlive_trt.configs import load_preset
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.errors import UsageError
from longlive_trt.files import real_path
from longlive_trt.reading.files import STDIN
from longlive_trt.runtime.adaptive.ladder import Rung, ladder
from longlive_trt.runtime.adaptive.pace import TARGET_MS, Pace, real_time_ms, require_adaptable
from longlive_trt.runtime.decoding.choice import DecoderName
from longlive_trt.runtime.generation import Outputs, generate
from longlive_trt.runtime.output import check_file_output, check_fps, check_output
from longlive_trt.runtime.output.preview import SUFFIX as PREVIEW_SUFFIX
from longlive_trt.runtime.pipeline import Pipeline
from longlive_trt.runtime.plan import SEEDS, Plan, VideoOptions, plan_video
from longlive_trt.runtime.progress import Mode, Progress, make_progress
from longlive_trt.runtime.prompting.switches import SwitchMode
from longlive_trt.runtime.prompting.timeline import Moment, Wish
from longlive_trt.runtime.prompting.timeline_files import (
    open_timeline,
    recipe_settings,
)
from longlive_trt.runtime.state import require_savable

DEFAULT_SECONDS = 5.0
_PATH = click.Path(path_type=Path)


_EXAMPLES = examples(
    'longlive-trt generate --bundle demo --prompt "a red car at dusk" --out car.mp4',
    'longlive-trt generate --bundle demo --prompt "a red car" --prompt-at 3s "in snow" --out v.mp4',
    'longlive-trt generate --bundle demo --prompt "a red car" --seconds inf --out - | ffplay -',
)


def _switch_mode(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> SwitchMode | None:
    return None if value is None else SwitchMode.parse(value)


@click.command(epilog=_EXAMPLES)
@click.option("--bundle", required=True, type=_PATH, help=BUNDLE_HELP)
@click.option("--prompt", help="What to show.")
@click.option(
    "--prompt-at",
    "prompts_at",
    multiple=True,
    type=(moment, str),
    metavar="TIME TEXT",
    help="Another prompt from then on: 7.5s, or a latent frame, 30; may be repeated.",
)
@click.option(
    "--timeline",
    type=_PATH,
    help="YAML, JSON or JSONL file with prompts and times, or - for stdin.",
)
@click.option("--line", type=int, help="Which line of a JSONL timeline.  [default: 1]")
@click.option(
    "--switch-frames",
    callback=moment_list,
    metavar="TIME,TIME,...",
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
@click.option("--seed", type=whole(SEEDS), help="[default: 0]")
@click.option(
    "--out", help="video.mp4, .mov or .gif, a folder/ for PNG files, or - for Y4M to stdout."
)
@click.option("--preview", type=_PATH, metavar="FILE.png", help="The newest picture, all the time.")
@click.option("--latents-out", type=_PATH, help="The latents too, as safetensors.")
@click.option("--replay", type=_PATH, help="A replay file, instead of prompts and seed.")
@click.option("--save-state", type=_PATH, help="Where to keep the state at the end.")
@click.option("--resume", type=_PATH, help="A saved state to go on from.")
@click.option(
    "--start",
    type=_PATH,
    metavar="FILE",
    help="A picture, a clip, or kept latents (.safetensors), to go on from.",
)
@click.option(
    "--lora",
    multiple=True,
    metavar="FILE[:SCALE]",
    help="A LoRA adapter for a bundle that was built with --lora-ready; may be repeated.",
)
@click.option("--include-start", is_flag=True, help="Show what --start begins with, too.")
@click.option("--preset", help="A shipped preset (`longlive-trt presets`), or a YAML file of one.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override rollout.* or fps of the bundle's configuration.",
)
@click.option(
    "--target-ms",
    type=real(TARGET_MS),
    help="Hold the time of a block under this, by stepping down to faster presets and back.",
)
@click.option("--realtime", is_flag=True, help="As --target-ms with the time a block is shown.")
@decoder_option
@device_option
@decode_device_option
@click.option(
    "--low-memory",
    is_flag=True,
    help="Hold the text encoder only while it encodes, and decode frame by frame, in tiles where "
    "the bundle has graphs for them.",
)
@click.option(
    "--debug-steady",
    is_flag=True,
    help="On a GPU: fail where a running session waits, allocates or copies.",
)
@overwrite_option
@speaking
def command(
    bundle: Path,
    prompt: str | None,
    prompts_at: tuple[tuple[Moment, str], ...],
    timeline: Path | None,
    line: int | None,
    switch_frames: tuple[Moment, ...] | None,
    switch: SwitchMode | None,
    seconds: float | None,
    frames: int | None,
    seed: int | None,
    out: str | None,
    preview: Path | None,
    latents_out: Path | None,
    replay: Path | None,
    save_state: Path | None,
    resume: Path | None,
    start: Path | None,
    lora: tuple[str, ...],
    include_start: bool,
    preset: str | None,
    overrides: tuple[str, ...],
    target_ms: float | None,
    realtime: bool,
    decoder: DecoderName | None,
    device: DeviceChoice,
    decode_device: str | None,
    low_memory: bool,
    debug_steady: bool,
    overwrite: bool,
    voice: Voice,
) -> int:
    """Make a video from a bundle and prompts.

    With --json, every event is a line of its own, and the result is the last one.
    """
    outputs = Outputs(out, latents_out, save_state, overwrite, preview)
    if voice.as_json and outputs.to_stdout:
        raise UsageError("--json and --out -: both write to stdout; leave one of them out")
    if not (outputs.video or outputs.latents):
        raise UsageError("nowhere to put the result: give --out video.mp4, or --latents-out FILE")
    options = VideoOptions(
        prompt=_cues(prompt, prompts_at),
        timeline=timeline,
        line=line,
        switch_frames=switch_frames,
        switch=switch,
        seconds=seconds,
        frames=frames,
        seed=seed,
        decode=out is not None or preview is not None,
        decoder=decoder,
        replay=replay,
        resume=resume,
        start=start,
        include_start=include_start,
        preset=preset,
        overrides=overrides,
        debug=debug_steady,
        spell=_as_option,
    )
    if prompts_at and prompt is None and resume is None:
        raise UsageError("--prompt-at: give --prompt TEXT too, for the beginning")
    if replay and outputs.state:
        raise UsageError(
            "--replay takes its noise from the file, and a state has a seed: leave out --save-state"
        )
    options = _with_length(_read(options))
    is_paced = realtime or target_ms is not None
    if realtime and target_ms is not None:
        raise UsageError("--target-ms and --realtime: give one of them")
    folder = find_bundle(bundle, voice)
    low_memory = low_memory or (preset is not None and load_preset(preset).low_memory)
    with make_progress(_mode(voice)) as progress:
        opened, loading = open_bundle(folder, progress.reporters.bytes), progress.reporters.stages
        with Pipeline(
            opened, device, decode_device=decode_device, low_memory=low_memory, report=loading
        ) as pipeline:
            if lora:
                pipeline.use_lora(*lora)
            plan = plan_video(opened, options)
            _check_outputs(outputs, plan, inputs=(timeline, replay, start))
            rungs = _rungs(opened, plan, preset, outputs) if is_paced else []
            plan = replace(plan, levels=tuple(rung.level for rung in rungs[1:]))
            for notice in plan.notices:
                progress.notice(notice)
            target = real_time_ms(plan) if target_ms is None else target_ms
            pace = _pace(rungs, target, plan, progress) if rungs else None
            interrupted = generate(pipeline, plan, outputs, progress, command_line(), pace)
    return INTERRUPTED if interrupted else 0


def _mode(voice: Voice) -> Mode:
    if voice.as_json:
        return "json"
    return "quiet" if voice.is_quiet else "auto"


def _read(options: VideoOptions) -> VideoOptions:
    """With the timeline's text: stdin is read once."""
    timeline = options.timeline
    return replace(options, timeline=open_timeline(timeline)) if timeline else options


def _with_length(options: VideoOptions) -> VideoOptions:
    has_length = options.seconds is not None or options.frames is not None
    if has_length or options.replay is not None:
        return options
    if options.timeline is not None and recipe_settings(options.timeline) is not None:
        return options
    return replace(options, seconds=DEFAULT_SECONDS)


def _rungs(bundle: Bundle, plan: Plan, preset: str | None, outputs: Outputs) -> list[Rung]:
    require_adaptable(plan)
    if outputs.state is not None:
        raise UsageError(
            "--target-ms and --realtime change the window on the way, and a state has one of a "
            "fixed size: leave out --save-state"
        )
    return ladder(bundle, plan, preset or "the video's own settings")


def _pace(rungs: Sequence[Rung], target_ms: float, plan: Plan, progress: Progress) -> Pace:
    blocks = frozenset(cue.frame // plan.block_frames for cue in plan.cues)
    return Pace(rungs, target_ms, blocks, progress.notice)


def _cues(prompt: str | None, prompts_at: tuple[tuple[Moment, str], ...]) -> list[Wish] | None:
    first = [] if prompt is None else [Wish(0, prompt, "--prompt")]
    later = [Wish(at, text, f"--prompt-at {at}") for at, text in prompts_at]
    return [*first, *later] or None


def _as_option(name: str) -> str:
    return "--set" if name == "overrides" else "--" + name.replace("_", "-")


def _check_outputs(outputs: Outputs, plan: Plan, inputs: Sequence[Path | None]) -> None:
    if plan.blocks is None and outputs.latents is not None:
        raise UsageError("--latents-out keeps all latents in memory: give it a finite --seconds")
    if outputs.state is not None:
        require_savable(plan.config)
    _require_different(outputs, inputs)
    for video in outputs.videos(plan.batch):
        if video is not None:
            check_output(video, outputs.overwrite)
            check_fps(video, plan.config.fps)
    if outputs.to_stdout and plan.batch > 1:
        raise UsageError(f"--out -: stdout takes one video, and these are {plan.batch}")
    preview = outputs.preview
    if preview is not None and preview.suffix.lower() != PREVIEW_SUFFIX:
        raise UsageError(f"--preview {preview}: a PNG file; end its name with {PREVIEW_SUFFIX}")
    for file in (outputs.latents, outputs.state, preview):
        if file is not None:
            check_file_output(file, outputs.overwrite)


def _require_different(outputs: Outputs, inputs: Sequence[Path | None]) -> None:
    read = [real_path(path) for path in inputs if path is not None and str(path) not in STDIN]
    video = None if outputs.to_stdout else outputs.video
    names = (video, outputs.latents, outputs.state, outputs.preview)
    written = [real_path(path) for path in names if path]
    for path in written:
        if path in read:
            raise UsageError(f"{path}: read by this run, so it cannot be its output too")
        if written.count(path) > 1:
            raise UsageError(f"{path}: two outputs of this name; give each a name of its own")
