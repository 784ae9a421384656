"""Rolls the videos of an evaluation, on the bundle and on its reference in step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from longlive_trt.errors import UsageError
from longlive_trt.quality.cases import Case
from longlive_trt.quality.instruments import Comparison, Extras, Values, Watch, World
from longlive_trt.runtime.pipeline import Pipeline
from longlive_trt.runtime.plan import Plan, VideoOptions, plan_video
from longlive_trt.runtime.prompting.switches import SwitchMode
from longlive_trt.runtime.video import Video, VideoBlock


@dataclass(frozen=True)
class Maker:
    """A bundle, run as a preset and settings say."""

    pipeline: Pipeline
    preset: str | None = None
    overrides: Sequence[str] = ()
    switch: str | None = None
    decoder: str | None = None
    """Without one, the preset's, or the bundle's first."""

    @property
    def is_changed(self) -> bool:
        """Whether the bundle is not run as it is."""
        return bool(self.preset or self.overrides or self.switch or self.decoder)

    def plan(self, case: Case) -> Plan:
        options = VideoOptions(
            prompt=dict(case.texts),
            frames=case.blocks * self.pipeline.config.rollout.frames_per_block,
            seed=case.seed,
            decoder=self.decoder,
            preset=self.preset,
            overrides=tuple(self.overrides),
            switch=None if self.switch is None else SwitchMode.parse(self.switch),
            spell=_as_option,
        )
        return plan_video(self.pipeline.bundle, options)

    def video(self, case: Case) -> Video:
        return self.pipeline.open(self.plan(case), _unheard)


def require_comparable(own: Maker, other: Maker) -> None:
    """Refuse, before any video, two bundles whose videos differ in size or length."""
    first, second = own.pipeline.config, other.pipeline.config
    names = [str(maker.pipeline.bundle.folder) for maker in (own, other)]
    if first.video_size != second.video_size:
        sizes = [_size(config.video_size) for config in (first, second)]
        raise UsageError(
            f"--against {names[1]}: makes pictures of {sizes[1]} pixels, and {names[0]} of "
            f"{sizes[0]}; compare builds of one model"
        )
    lengths = [(c.rollout.frames_per_block, c.temporal_factor, c.fps) for c in (first, second)]
    if lengths[0] != lengths[1]:
        raise UsageError(
            f"--against {names[1]}: makes videos of another length than {names[0]} (frames of a "
            f"block, pictures of a frame, frames/s: {lengths[1]}, against {lengths[0]}); compare "
            f"builds of one model"
        )


def _as_option(name: str) -> str:
    return "--set" if name == "overrides" else f"--{name}"


def _size(size: tuple[int, int] | None) -> str:
    return f"{size[1]} x {size[0]}" if size else "no"


def roll(
    case: Case,
    own: Maker,
    other: Maker | None,
    extras: Extras,
    on_block: Callable[[], bool],
) -> Values | None:
    """All that was measured; None if ``on_block`` asked to stop."""
    line = {**_described(case), "world": _world(case, own, extras)}
    with own.video(case) as video:
        pictures = video.plan.video_frames(0, case.blocks)
        watch = Watch(case, pictures, extras)
        if other is None:
            if not _watch(video, watch, case, on_block):
                return None
            return {**line, "own": watch.values(), "other": None, "against": None}
        with other.video(case) as reference:
            second, comparison = Watch(case, pictures, extras), Comparison(extras)
            for a, b in _pairs(video, reference):
                prompt = _prompt(case, a)
                watch.add(a.frames, prompt)
                second.add(b.frames, prompt)
                comparison.add(a.frames, b.frames)
                if not on_block():
                    return None
    return {
        **line, "own": watch.values(), "other": second.values(), "against": comparison.values(),
    }  # fmt: skip


def _world(case: Case, own: Maker, extras: Extras) -> Values | None:
    if extras.clips is None or not extras.judges:
        return None
    return World(extras.clips, own.pipeline.config.fps).values(case)


def _watch(video: Video, watch: Watch, case: Case, on_block: Callable[[], bool]) -> bool:
    for block in video.ahead():
        watch.add(block.frames, _prompt(case, block))
        if not on_block():
            return False
    return True


def _pairs(own: Video, other: Video) -> Iterator[tuple[VideoBlock, VideoBlock]]:
    for a, b in zip_longest(own.ahead(), other.ahead()):
        if a is None or b is None:
            raise UsageError("the two videos are not of one length; compare builds of one model")
        yield a, b


def _prompt(case: Case, block: VideoBlock) -> str:
    frames = block.latents.shape[1]
    return case.prompt_of(block.index * frames)


def _described(case: Case) -> Values:
    return {
        "kind": case.kind,
        "number": case.number,
        "seed": case.seed,
        "texts": {str(frame): text for frame, text in case.texts.items()},
    }


def _unheard(_text: str) -> None:
    """What a person should know of a prompt was said once, or is in the report."""
