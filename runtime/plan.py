"""What a video shows and for how long: as it is asked for, and what that means for a bundle."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from longlive_trt.configs import ModelConfig, load_preset
from longlive_trt.configs.replay import Replay, load_replay
from longlive_trt.contract import K_CACHE, PROMPT, STEP, TEXT, numbered
from longlive_trt.dtypes import name_of, recorded_type
from longlive_trt.engines.bundles.bundle import BATCH, Bundle
from longlive_trt.engines.bundles.fit import require_fit
from longlive_trt.errors import UsageError
from longlive_trt.reading.ranges import Range
from longlive_trt.runtime.decoding.choice import decoder_named
from longlive_trt.runtime.noise import NoiseSource, ReplayNoise, SeededNoise
from longlive_trt.runtime.presets import require_served, runtime_config
from longlive_trt.runtime.prompting.switches import EXACT, SwitchMode
from longlive_trt.runtime.prompting.timeline import (
    ENDLESS,
    ByMoment,
    Clock,
    Cue,
    Length,
    Moment,
    Timeline,
    Wish,
    checked_timeline,
    length_in_frames,
    require_length,
    require_watchable,
)
from longlive_trt.runtime.prompting.timeline_files import (
    TimelineText,
    open_timeline,
    recipe_settings,
    timeline_from_file,
)
from longlive_trt.runtime.prompting.wishes import asked_cues
from longlive_trt.runtime.ring import RingLayout
from longlive_trt.runtime.starting.start import Start, open_start
from longlive_trt.runtime.state import SavedState, load_state, require_kept, require_savable
from longlive_trt.runtime.transformer import Level

SEEDS = Range(0, 2**64 - 1)


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Refuses, at once, what contradicts itself; ``spell`` is how a message writes a name."""

    prompt: str | ByMoment | Sequence[Cue | Wish] | None = None
    """A text, or texts by the latent frame, or the time (``7.5s``), from which each is wanted."""
    timeline: Path | TimelineText | None = None
    line: int | None = None
    switch_frames: tuple[Moment, ...] | None = None
    switch: SwitchMode | None = None
    """Without one, a resumed video goes on with its own; any other with exact switches."""
    seconds: float | None = None
    frames: int | None = None
    """Latent frames. Without either length the video is endless."""
    seed: int | None = None
    batch: int | None = None
    decode: bool = True
    decoder: str | None = None
    """``full`` or ``light``; without one, the preset's, or the bundle's first."""
    replay: Path | None = None
    resume: Path | None = None
    start: Path | None = None
    """A picture, a clip or kept latents, which the video goes on from."""
    include_start: bool = False
    """The start's own pictures are handed out too."""
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    debug: bool = False
    spell: Callable[[str], str] = field(default=str, repr=False)

    def __post_init__(self) -> None:
        self._require_one_source()
        self._require_own_length_and_seed()
        self._require_own_start()
        if self.seed is not None and self.seed not in SEEDS:
            raise UsageError(f"{self.spell('seed')} is {self.seed}; allowed: 0 to 2**64 - 1")
        BATCH.require(self.spell("batch"), self.batch)
        require_length(self.seconds, self.frames)

    def _require_one_source(self) -> None:
        sources = {
            "prompt": self.prompt is not None,
            "timeline": self.timeline is not None,
            "replay": self.replay is not None,
        }
        names = [self.spell(name) for name, is_given in sources.items() if is_given]
        if len(names) > 1:
            raise UsageError(f"{' and '.join(names)}: give one of them")
        if not names and self.resume is None:
            prompt, timeline, replay = map(self.spell, sources)
            raise UsageError(
                f"nothing to show: give {prompt} TEXT, {timeline} FILE or {replay} FILE"
            )
        if self.timeline is None and (self.line is not None or self.switch_frames):
            line, frames, timeline = map(self.spell, ("line", "switch_frames", "timeline"))
            raise UsageError(f"{line} and {frames} belong to {timeline} FILE.jsonl")

    def _require_own_length_and_seed(self) -> None:
        seconds, frames, seed, batch, replay, resume = map(
            self.spell, ("seconds", "frames", "seed", "batch", "replay", "resume")
        )
        if self.resume and self.seed is not None:
            raise UsageError(f"{resume} goes on with the saved seed: leave out {seed}")
        if self.replay and (self.seconds is not None or self.frames is not None or self.resume):
            raise UsageError(
                f"{replay} fixes the length: leave out {seconds}, {frames} and {resume}"
            )
        if (self.replay or self.resume) and self.batch is not None:
            raise UsageError(f"{replay} and {resume} say how many videos: leave out {batch}")

    def _require_own_start(self) -> None:
        start, resume, include = map(self.spell, ("start", "resume", "include_start"))
        if self.start is not None and self.resume is not None:
            raise UsageError(f"{resume} goes on from a video of its own: leave out {start}")
        if self.include_start and self.start is None:
            raise UsageError(f"{include} shows what {start} FILE begins with: give that too")


@dataclass(frozen=True)
class Plan:
    """A video to make from a bundle: either from prompts and a seed, or as a replay file says."""

    config: ModelConfig
    blocks: int | None
    """How many to make now, beyond what the video begins with; None is until somebody stops."""
    cues: Sequence[Cue] = ()
    """Prompts at the block starts where they take effect."""
    switch: SwitchMode = EXACT
    seed: int = 0
    rows: int = 1
    """Videos made side by side, of one prompt; a replay and a saved state have their own."""
    decode: bool = True
    decoder: str | None = None
    """Which of the bundle's decoders makes the pictures; None is its first."""
    replay: Replay | None = None
    resumed: SavedState | None = None
    start: Start | None = None
    include_start: bool = False
    debug: bool = False
    notices: tuple[str, ...] = ()
    """What whoever asked should be told."""
    levels: tuple[Level, ...] = ()
    """Other ways to make blocks, which the session may change to."""

    @property
    def block_frames(self) -> int:
        return self.config.rollout.frames_per_block

    @property
    def start_blocks(self) -> int:
        """Blocks that are given."""
        return self.start.frames // self.block_frames if self.start else 0

    @property
    def first_block(self) -> int:
        """The first that is handed out."""
        if self.resumed is not None:
            return self.resumed.next_frame // self.block_frames
        return 0 if self.include_start else self.start_blocks

    @property
    def end_block(self) -> int | None:
        if self.blocks is None:
            return None
        return max(self.first_block, self.start_blocks) + self.blocks

    @property
    def blocks_shown(self) -> int | None:
        """How many are handed out."""
        return None if self.end_block is None else self.end_block - self.first_block

    @property
    def total_frames(self) -> int | None:
        """Latent frames of the whole video."""
        return None if self.end_block is None else self.end_block * self.block_frames

    @property
    def batch(self) -> int:
        if self.replay is not None:
            return self.replay.batch
        return self.resumed.batch if self.resumed else self.rows

    @property
    def decodes(self) -> bool:
        """A state that can be resumed as a video holds the decoder's memory too."""
        return self.decode or (self.resumed is not None and self.resumed.vae_frames is not None)

    @property
    def noise(self) -> NoiseSource:
        if self.replay is not None:
            return ReplayNoise(self.replay, self.block_frames)
        shape = (self.batch, self.block_frames, *self.config.latent_shape)
        return SeededNoise(self.seed, shape, self.config.rollout.noises)

    def video_frames(self, first_block: int, end_block: int) -> int:
        """How many pictures some blocks give."""
        latents = (end_block - first_block) * self.block_frames
        return self.config.video_frames(latents, after=first_block * self.block_frames)


def plan_video(bundle: Bundle, options: VideoOptions) -> Plan:
    """Everything that can be refused is refused here, before engines are loaded."""
    if options.timeline is not None:
        options = replace(options, timeline=open_timeline(options.timeline))
    options = _as_recipe_says(options, bundle)
    resumed = load_state(options.resume) if options.resume else None
    if options.preset is not None:
        require_served(bundle, options.preset)
    base = resumed.config if resumed else bundle.config
    config = runtime_config(base, options.preset, options.overrides, options.spell)
    replay = load_replay(options.replay, config) if options.replay is not None else None
    rows = replay.batch if replay is not None else options.batch or 1
    start = open_start(options.start, bundle, config, rows) if options.start is not None else None
    if replay is not None:
        plan = _replay_plan(replay, config, options, start)
    else:
        if resumed is not None:
            _require_same_bundle(bundle, resumed, options.resume)
        plan = _prompted_plan(config, resumed, start, options)
    RingLayout.of(plan.config, plan.total_frames)
    plan = replace(plan, decoder=_chosen_decoder(bundle, options, plan, resumed))
    _require_graphs(bundle, plan)
    if resumed is not None:
        _require_resumable(plan, resumed, options.spell("resume"))
        assert options.resume is not None
        layout = RingLayout.of(plan.config, plan.total_frames)
        require_kept(options.resume, resumed, bundle, layout)
    return plan


def _as_recipe_says(options: VideoOptions, bundle: Bundle) -> VideoOptions:
    """A recipe's own settings, where nothing else was asked for."""
    recipe = recipe_settings(options.timeline) if options.timeline is not None else None
    if recipe is None:
        return options
    if options.start is not None:
        raise UsageError(
            f"{options.timeline}: a recipe makes a video again that began without pictures: leave "
            f"out {options.spell('start')}, or give its prompts as a list"
        )
    if recipe.bundle_key != bundle.manifest.key:
        raise UsageError(
            f"{options.timeline}: made with another bundle (key {recipe.bundle_key[:12]}, this one "
            f"is {bundle.manifest.key[:12]}); use that one, or give its prompts as a list"
        )
    has_length = options.seconds is not None or options.frames is not None
    return replace(
        options,
        seed=recipe.seed if options.seed is None and options.resume is None else options.seed,
        switch=options.switch or SwitchMode.parse(recipe.switch),
        frames=options.frames if has_length else recipe.frames,
    )


def _chosen_decoder(
    bundle: Bundle, options: VideoOptions, plan: Plan, resumed: SavedState | None
) -> str | None:
    """The one that was asked for, or that of the preset, or of the video that goes on."""
    if not plan.decodes:
        return None
    preset = load_preset(options.preset).build.decoder if options.preset is not None else None
    name = options.decoder or preset or (resumed.decoder if resumed else None)
    return decoder_named(bundle, name, options.spell("decoder")).name


def _require_graphs(bundle: Bundle, plan: Plan) -> None:
    bundle.require(STEP, "generating")
    bundle.require(PROMPT, "conditioning on a prompt")
    if plan.cues:
        require_text_encoder(bundle)
    require_fit(bundle.folder, bundle.config, bundle.manifest.graphs)


def require_text_encoder(bundle: Bundle) -> None:
    bundle.require(TEXT, "reading a prompt")
    _ = bundle.tokenizer


def _require_same_bundle(bundle: Bundle, resumed: SavedState, path: Path | None) -> None:
    if resumed.bundle_key != bundle.manifest.key:
        raise UsageError(
            f"{path}: saved with another bundle (key {resumed.bundle_key[:12]}, this one is "
            f"{bundle.manifest.key[:12]}{_kept_otherwise(bundle, resumed)}); resume with the "
            f"bundle that made it"
        )


def _kept_otherwise(bundle: Bundle, resumed: SavedState) -> str:
    """How keys are kept, where that is what differs."""
    name = numbered(K_CACHE, 0)
    infos = bundle.manifest.graphs[STEP].inputs if bundle.has(STEP) else ()
    own = [recorded_type(info.dtype).name for info in infos if info.name == name]
    saved = name_of(resumed.tensors[name].dtype)
    return f", which keeps keys in {own[0]} and not {saved}" if own and own != [saved] else ""


def _replay_plan(
    replay: Replay, config: ModelConfig, options: VideoOptions, start: Start | None
) -> Plan:
    """Of a start's frames the replay's noise is not needed; what follows has its own."""
    given = start.frames if start else 0
    if given >= replay.frames:
        raise UsageError(
            f"{options.replay}: {replay.frames} latent frames, and {options.start} is {given} of "
            f"them already; give a longer replay, or leave out {options.spell('start')}"
        )
    return Plan(
        config,
        (replay.frames - given) // config.rollout.frames_per_block,
        start=start,
        include_start=options.include_start,
        notices=start.notices if start else (),
        switch=options.switch or EXACT,
        decode=options.decode,
        replay=replay,
        debug=options.debug,
    )


def _prompted_plan(
    config: ModelConfig, resumed: SavedState | None, start: Start | None, options: VideoOptions
) -> Plan:
    block_frames = config.rollout.frames_per_block
    done = resumed.next_frame if resumed else start.frames if start else 0
    length = _length(options, config, has_past=done > 0)
    frames = length.latent_frames
    clock = Clock(config, None if frames is None else done + frames)
    timeline = _timeline(options, clock, resumed)
    return Plan(
        config,
        None if frames is None else frames // block_frames,
        cues=_cues(timeline, block_frames, resumed) if timeline else (),
        switch=options.switch or (resumed.switch if resumed else EXACT),
        seed=resumed.seed if resumed else options.seed or 0,
        rows=options.batch or 1,
        decode=options.decode,
        resumed=resumed,
        start=start,
        include_start=options.include_start,
        debug=options.debug,
        notices=(
            *(start.notices if start else ()),
            *length.notices,
            *(timeline.notices if timeline else ()),
        ),
    )


def _length(options: VideoOptions, config: ModelConfig, *, has_past: bool) -> Length:
    seconds, frames = options.seconds, options.frames
    if seconds is None and frames is None:
        return ENDLESS
    if has_past and seconds is not None and 0 < seconds < math.inf and frames is None:
        # Only a video's very first latent frame gives a single picture.
        frames, seconds = math.ceil(seconds * config.fps / config.temporal_factor), None
    length = length_in_frames(seconds, frames, config)
    require_watchable(length, config)
    return length


def _timeline(options: VideoOptions, clock: Clock, resumed: SavedState | None) -> Timeline | None:
    if options.timeline is not None:
        return timeline_from_file(
            options.timeline, clock, line=options.line, switch_frames=options.switch_frames
        )
    if options.prompt is None:
        return None
    cues = asked_cues(options.prompt, options.spell("prompt"), clock)
    if resumed is not None and (not cues or cues[0].frame > 0):
        cues.insert(0, Cue(0, resumed.prompt, "the saved prompt"))
    if not cues:
        raise UsageError(f"nothing to show: {options.spell('prompt')} is empty; give a text")
    return checked_timeline(cues, clock)


def _cues(timeline: Timeline, block_frames: int, resumed: SavedState | None) -> list[Cue]:
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


def _require_resumable(plan: Plan, saved: SavedState, resume: str) -> None:
    """A state fits caches of its own shape only, and holds what its run had to remember."""
    rollout = plan.config.rollout
    require_savable(plan.config)
    for key in ("frames_per_block", "window_frames", "sink_frames"):
        before, now = getattr(saved.config.rollout, key), getattr(rollout, key)
        if before != now:
            raise UsageError(
                f"{resume}: rollout.{key} was {before} when the state was saved, and is {now} now; "
                f"leave it as it was"
            )
    if plan.decode and saved.vae_frames is None:
        raise UsageError(
            f"{resume}: the state was saved by a run without pictures (without --out, or with "
            "decode=False), so the decoder cannot go on; ask for latents alone (--latents-out "
            "without --out, or decode=False), or make the first part again with pictures"
        )
