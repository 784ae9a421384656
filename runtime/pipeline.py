"""A bundle, opened for making videos."""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from weakref import WeakSet

from longlive_trt.basics import Array, Closing, Report, unheard
from longlive_trt.configs import ModelConfig
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.errors import UsageError
from longlive_trt.reading.failures import refusing
from longlive_trt.runtime.adapting import AskedAdapter
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.plan import Plan, VideoOptions, plan_video
from longlive_trt.runtime.prompting.encoder import PromptEncoder
from longlive_trt.runtime.prompting.notices import notices
from longlive_trt.runtime.prompting.switches import SwitchMode
from longlive_trt.runtime.prompting.timeline import ByMoment, Cue, Moment
from longlive_trt.runtime.prompting.tokenizer import TokenizedPrompt
from longlive_trt.runtime.prompting.track import (
    PromptSource,
    PromptTrack,
    RecordedPrompts,
    replay_cues,
    replay_states,
)
from longlive_trt.runtime.session import Session
from longlive_trt.runtime.state import restore
from longlive_trt.runtime.video import Video

logger = logging.getLogger(__name__)

Notify = Callable[[str], None]


class Pipeline(Closing):
    """Makes any number of videos, one after the other or side by side."""

    def __init__(
        self,
        bundle: Bundle,
        device: DeviceChoice = "auto",
        *,
        decode_device: str | None = None,
        low_memory: bool = False,
        report: Report = unheard,
    ) -> None:
        """``report`` hears of engines that are loaded."""
        self.bundle = bundle
        self.engines = Engines(
            bundle, device, decode_device=decode_device, low_memory=low_memory, report=report
        )
        self._opening = threading.Lock()
        self._videos: WeakSet[Video] = WeakSet()

    @property
    def config(self) -> ModelConfig:
        return self.bundle.config

    def video(
        self,
        prompt: str | ByMoment | Sequence[Cue] | None = None,
        *,
        seconds: float | None = None,
        frames: int | None = None,
        seed: int | None = None,
        switch: str | None = None,
        decode: bool = True,
        decoder: str | None = None,
        batch: int | None = None,
        timeline: str | Path | None = None,
        line: int | None = None,
        switch_frames: Sequence[Moment] | None = None,
        resume: str | Path | None = None,
        start: str | Path | None = None,
        include_start: bool = False,
        replay: str | Path | None = None,
        preset: str | None = None,
        overrides: Sequence[str] = (),
        debug: bool = False,
        notify: Notify = logger.warning,
    ) -> Video:
        """Begin a video.

        ``prompt``: a text, or texts by the latent frame, or the time (``"7.5s"``), from which each
        is wanted.
        ``seconds`` or ``frames`` (latent frames): the length; without either it is endless.
        ``seed``: of the noise; 0 if none is given.
        ``switch``: how prompts change: ``exact``, ``partial``, ``none`` or ``blend:N``.
        ``decode``: without it there are latents and no pictures.
        ``decoder``: ``full`` or ``light``, where the bundle holds both.
        ``batch``: so many videos of one prompt, side by side.
        ``timeline``: a file of prompts, with ``line`` and ``switch_frames`` for JSON Lines.
        ``resume``: a file that ``Video.save_state`` wrote; lengths count from there.
        ``start``: a picture, a clip, or latents that ``generate --latents-out`` kept, which the
        video goes on from; lengths count from there. ``include_start``: hand out its pictures too.
        ``replay``: a file of noise and prompts, instead of all that.
        ``preset`` and ``overrides`` (``rollout.window_frames=9``): other settings than the
        bundle's own.
        ``debug``: on a GPU, a block that waits, allocates or copies is an error.
        ``notify`` is told what a person should know, such as that a prompt was cut.
        """
        options = VideoOptions(
            prompt=prompt,
            timeline=_path(timeline),
            line=line,
            switch_frames=None if switch_frames is None else tuple(switch_frames),
            switch=None if switch is None else SwitchMode.parse(switch, "switch"),
            seconds=seconds,
            frames=frames,
            seed=seed,
            batch=batch,
            decode=decode,
            decoder=decoder,
            replay=_path(replay),
            resume=_path(resume),
            start=_path(start),
            include_start=include_start,
            preset=preset,
            overrides=tuple(overrides),
            debug=debug,
        )
        plan = plan_video(self.bundle, options)
        for notice in plan.notices:
            notify(notice)
        return self.open(plan, notify)

    def use_lora(self, *adapters: AskedAdapter, switch: str = "exact") -> None:
        """Make all following blocks with these adapters; with none, as the bundle was built.

        ``FILE`` or ``FILE:SCALE``, safetensors. Call it between two blocks, on the thread that
        makes them. A video that was begun with others changes over as with a prompt: ``switch``
        says whether its past is recomputed (``exact``, ``partial``) or not (``none``).
        """
        self.engines.use_lora(adapters, switch)

    def open(
        self, plan: Plan, notify: Notify = logger.warning, *, prompts: PromptSource | None = None
    ) -> Video:
        """Load what the video needs, and begin it.

        ``prompts``: a source that several videos share, in place of an encoder of the video's own.
        """
        engines = self.engines
        engines.require_memory(
            plan.config,
            batch=plan.batch,
            total_frames=plan.total_frames,
            decode=plan.decodes,
            text=bool(plan.cues),
            decoder=plan.decoder,
        )
        given = self._given(plan)
        with ExitStack() as undoing:
            session = engines.session(
                plan.config,
                plan.noise,
                batch=plan.batch,
                total_frames=plan.total_frames,
                decode=plan.decodes,
                decoder=plan.resumed.decoder if plan.resumed else plan.decoder,
                debug=plan.debug,
                levels=plan.levels,
                given=given,
            )
            undoing.callback(session.close)
            if plan.resumed is not None:
                restore(session, plan.resumed)
                _change_decoder(session, plan)
            track = self._track(plan, notify, prompts)
            video = Video(self.bundle, plan, session, track, lambda: engines.adapters)
            if plan.resumed is not None and plan.resumed.lora != engines.adapters.labels:
                notify(
                    "the state was saved with other LoRA adapters; the video changes over to those "
                    "in use, as at a prompt switch"
                )
            undoing.pop_all()
        with self._opening:
            self._videos.add(video)
        return video

    def close(self) -> None:
        """Ends all videos."""
        for video in list(self._videos):
            video.close()
        self.engines.close()

    def _given(self, plan: Plan) -> Array | None:
        """The latents that the video begins with."""
        start = plan.start
        if start is None or start.latents is not None:
            return start.latents if start else None
        with refusing(UsageError, start.path, "give another picture or clip"):
            latents = self.engines.encode(start.pictures(plan.config))
        if latents.shape[1] != start.frames:
            raise UsageError(f"{start.path}: was changed while it was read; try again")
        return latents

    def _track(self, plan: Plan, notify: Notify, prompts: PromptSource | None) -> PromptTrack:
        if plan.replay is not None:
            contexts = self.engines.contexts(plan.batch)
            recorded = RecordedPrompts(contexts, replay_states(plan.replay))
            return PromptTrack(recorded, replay_cues(plan.replay, plan.block_frames), plan.switch)

        saved = plan.resumed
        return PromptTrack(
            prompts or self._encoder(plan, notify),
            plan.cues,
            plan.switch,
            prompt=saved.prompt if saved else "",
            blend=saved.blend if saved else None,
        )

    def _encoder(self, plan: Plan, notify: Notify) -> PromptEncoder:
        def tell(prompt: str, tokens: TokenizedPrompt) -> None:
            for notice in notices(prompt, tokens, plan.config):
                notify(notice)

        encoder = self.engines.prompt_encoder(plan.batch, tell)
        if plan.cues:
            encoder.load()
        return encoder


def _change_decoder(session: Session, plan: Plan) -> None:
    """Of a video that goes on with another one than it had."""
    before = plan.resumed.decoder if plan.resumed is not None else None
    if before is not None and plan.decoder is not None and plan.decoder != before:
        session.use_decoder(plan.decoder)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
