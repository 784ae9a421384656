"""One run of ``generate``: the block loop between a session and its outputs."""

import platform
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from ..configs import ModelConfig
from ..configs.dump import config_values
from ..configs.replay import Replay
from ..engines.bundle import Bundle
from ..engines.loader import DeviceChoice, require_runnable
from ..errors import UsageError
from .assembly import Engines
from .interrupts import StopRequest, stop_on_signals
from .noise import FloatArray, NoiseSource, ReplayNoise, SeededNoise
from .output import FrameWriter, open_writer, write_latents, write_sidecar
from .progress import Meter, Progress, Started
from .ring import RingLayout
from .session import Block, Session
from .state import SavedState, restore, save_state
from .switches import (
    EXACT,
    Mixer,
    NoSwitches,
    ReplaySwitches,
    Switches,
    SwitchMode,
    TimelineSwitches,
)
from .timeline import Cue


@dataclass(frozen=True)
class Outputs:
    video: str | None = None
    """As the user wrote it: a trailing slash means a folder of pictures."""
    latents: Path | None = None
    state: Path | None = None
    overwrite: bool = False

    def videos(self, batch: int) -> list[str | None]:
        """One video for each row of the batch; several are numbered before the ending."""
        if self.video is None or batch == 1:
            return [self.video] * batch
        path = Path(self.video)
        slash = "/" if self.video.endswith("/") else ""
        return [
            str(path.with_name(f"{path.stem}.{row}{path.suffix}")) + slash for row in range(batch)
        ]


@dataclass(frozen=True)
class Request:
    """What to make: either from prompts and a seed, or as a replay file says."""

    config: ModelConfig
    outputs: Outputs
    blocks: int | None
    """How many to make now; None is until interrupted."""
    starts: Sequence[Cue] = ()
    """Prompts at the block starts where they take effect."""
    switch: SwitchMode = EXACT
    seed: int = 0
    replay: Replay | None = None
    resumed: SavedState | None = None
    command: str = ""
    device: DeviceChoice = "auto"
    low_memory: bool = False
    debug: bool = False

    @property
    def first_block(self) -> int:
        frames = self.resumed.next_frame if self.resumed else 0
        return frames // self.config.rollout.frames_per_block

    @property
    def end_block(self) -> int | None:
        return None if self.blocks is None else self.first_block + self.blocks

    @property
    def total_frames(self) -> int | None:
        end = self.end_block
        return None if end is None else end * self.config.rollout.frames_per_block

    @property
    def batch(self) -> int:
        if self.replay is not None:
            return self.replay.batch
        return self.resumed.batch if self.resumed else 1

    def video_frames(self, first_block: int, end_block: int) -> int:
        """How many pictures some blocks give: the video's first latent frame gives one only."""
        latents = (end_block - first_block) * self.config.rollout.frames_per_block
        factor = self.config.temporal_factor
        return latents * factor - (factor - 1 if first_block == 0 and latents else 0)


def check_request(bundle: Bundle, request: Request) -> None:
    """Refuse what would fail later, before engines are loaded or files are made."""
    require_runnable(bundle, request.device)
    RingLayout.of(request.config, request.total_frames)
    bundle.require("step", "generating")
    bundle.require("prompt", "conditioning on a prompt")
    if request.starts:
        bundle.require("text", "reading a prompt")
        _ = bundle.tokenizer
    if request.outputs.video is not None:
        bundle.require("vae_first", "making a video")
    _require_resumable(request)


def _require_resumable(request: Request) -> None:
    """A state fits caches of its own shape only, and holds what its run had to remember."""
    rollout, saved = request.config.rollout, request.resumed
    if rollout.is_global and (saved or request.outputs.state):
        raise UsageError(
            "rollout.window_frames is -1: global attention keeps no more than the video's length "
            "asks for, so its state cannot be saved or resumed; set a window"
        )
    if saved is None:
        return
    for key in ("frames_per_block", "window_frames", "sink_frames"):
        before, now = getattr(saved.config.rollout, key), getattr(rollout, key)
        if before != now:
            raise UsageError(
                f"--resume: rollout.{key} was {before} when the state was saved, and is {now} now; "
                f"leave it as it was"
            )
    if request.outputs.video is not None and saved.vae_frames is None:
        raise UsageError(
            "--resume: the state was saved by a run without --out, so the decoder cannot go on; "
            "give --latents-out alone, or make the first part again with --out"
        )


def generate(bundle: Bundle, request: Request, progress: Progress) -> bool:
    """Make the video; True if it was interrupted. What was made is kept in any case."""
    with ExitStack() as stack:
        engines = stack.enter_context(
            Engines(bundle, request.device, low_memory=request.low_memory)
        )
        engines.require_memory(
            request.config,
            batch=request.batch,
            total_frames=request.total_frames,
            decode=_decodes(request),
            text=bool(request.starts),
        )
        session = stack.enter_context(_open_session(engines, request))
        switches = _open_switches(engines, request, progress)
        stop = stack.enter_context(stop_on_signals(progress.notice))
        run = _Run(bundle, request, session, switches, _open_writers(request), progress)
        try:
            run.make(stop)
        except KeyboardInterrupt:
            stop.made = True
            run.hand_out_rest()
        finally:
            run.finish(stop.made)
    return stop.made


class _Run:
    def __init__(
        self,
        bundle: Bundle,
        request: Request,
        session: Session,
        switches: Switches,
        writers: Sequence[FrameWriter],
        progress: Progress,
    ) -> None:
        self._bundle, self._request, self._session = bundle, request, session
        self._switches, self._writers, self._progress = switches, writers, progress
        self._meter = Meter(request.end_block, first_block=request.first_block)
        self._latents: list[FloatArray] = []
        self._pending: deque[Block] = deque()
        self._between_blocks = True

    def make(self, stop: StopRequest) -> None:
        request, session = self._request, self._session
        end = request.end_block
        frames = None if end is None else request.video_frames(request.first_block, end)
        video = request.outputs.video
        self._progress.started(Started(request.blocks, frames, request.config.fps, video))
        while not stop.made and session.blocks_made != end:
            self._between_blocks = False
            change = self._switches.due(session.ring.next_frame)
            if change is not None:
                session.switch_prompt(change.context, change.recache)
            block = session.step()
            self._between_blocks = True
            if request.outputs.latents is not None:
                self._latents.append(block.latents)
            self._pending.append(block)
            if len(self._pending) > 1:
                # The block before was decoded while this one was made.
                self._hand_out()
        self.hand_out_rest()

    def hand_out_rest(self) -> None:
        while self._pending:
            self._hand_out()

    def finish(self, interrupted: bool) -> None:
        """Leave whole files, whatever ended the run."""
        outputs = self._request.outputs
        with ExitStack() as closing:
            # One that fails does not take the others with it.
            closing.callback(self._save_state)
            closing.callback(self._write_latents)
            for writer in self._writers:
                closing.callback(self._close, writer)
        finished = self._meter.finished(outputs.video, interrupted)
        if outputs.video is not None and finished.blocks:
            record = _record(self._bundle, self._request, finished.blocks, finished.video_frames)
            for video in outputs.videos(self._request.batch):
                write_sidecar(str(video).rstrip("/"), record)
        self._progress.finished(finished)

    def _close(self, writer: FrameWriter) -> None:
        writer.close()
        for notice in writer.notices:
            self._progress.notice(notice)

    def _write_latents(self) -> None:
        path = self._request.outputs.latents
        if path is not None and self._latents:
            write_latents(path, np.concatenate(self._latents, axis=1))

    def _save_state(self) -> None:
        path = self._request.outputs.state
        if path is None or not self._session.blocks_made:
            return
        if not self._between_blocks:
            self._progress.notice(f"{path}: not written; the run ended in the middle of a block")
            return
        save_state(
            path,
            self._session,
            bundle_key=self._bundle.manifest.key,
            seed=self._request.seed,
            prompt=self._switches.prompt,
            switch=self._request.switch,
            blend=self._switches.blend,
        )

    def _hand_out(self) -> None:
        block = self._pending[0]
        pixels = block.pixels() if self._session.decoder is not None else ()
        # Ctrl-C ends the wait above, but lets a write finish first.
        self._pending.popleft()
        for row, writer in zip(pixels, self._writers, strict=True):
            writer.write(row)
        frames = self._request.video_frames(block.index, block.index + 1)
        self._progress.block(self._meter.block(frames))


def _open_session(engines: Engines, request: Request) -> Session:
    config = request.config
    block_frames = config.rollout.frames_per_block
    noise: NoiseSource
    if request.replay is not None:
        noise = ReplayNoise(request.replay, block_frames)
    else:
        shape = (request.batch, block_frames, *config.latent_shape)
        noise = SeededNoise(request.seed, shape, len(config.rollout.steps))
    session = engines.session(
        config,
        noise,
        batch=request.batch,
        total_frames=request.total_frames,
        decode=_decodes(request),
        debug=request.debug,
    )
    if request.resumed is not None:
        restore(session, request.resumed)
    return session


def _decodes(request: Request) -> bool:
    """A state that can be resumed as a video holds the decoder's memory too."""
    saved = request.resumed is not None and request.resumed.vae_frames is not None
    return request.outputs.video is not None or saved


def _open_switches(engines: Engines, request: Request, progress: Progress) -> Switches:
    def tell(prompt: str, kept: str) -> None:
        limit = request.config.transformer.text_len
        progress.notice(
            f"the prompt that begins {prompt[:30]!r} is longer than {limit} tokens; "
            f"it was cut after {kept[-30:]!r}"
        )

    if request.replay is not None:
        block_frames, contexts = request.config.rollout.frames_per_block, engines.contexts
        return ReplaySwitches(contexts(request.batch), request.replay, block_frames, request.switch)
    resumed = request.resumed
    prompt, blend = (resumed.prompt, resumed.blend) if resumed else ("", None)
    if request.starts:
        encoder = engines.prompt_encoder(request.batch, tell)
        return TimelineSwitches(encoder, request.starts, request.switch, prompt, blend)
    mixer = Mixer(engines.contexts(request.batch), blend) if blend else None
    return NoSwitches(prompt, mixer)


def _open_writers(request: Request) -> list[FrameWriter]:
    vae = request.config.vae
    if vae is None or not _decodes(request):
        return []
    height = request.config.latent.height * vae.spatial_factor
    width = request.config.latent.width * vae.spatial_factor
    outputs = request.outputs
    return [
        open_writer(video, request.config.fps, height, width, outputs.overwrite)
        for video in outputs.videos(request.batch)
    ]


def _record(
    bundle: Bundle, request: Request, blocks: int, video_frames: int
) -> Mapping[str, object]:
    """What it takes to make the same video again."""
    manifest = bundle.manifest
    packages = ("longlive-trt", "numpy", "onnxruntime", "av")
    return {
        "command": request.command,
        "bundle": str(bundle.folder),
        "bundle_key": manifest.key,
        "engine": f"{manifest.engine.kind} {manifest.engine.version}",
        "precision": manifest.precision,
        "config": config_values(request.config),
        "seed": None if request.replay else request.seed,
        "prompts": [{"frame": cue.frame, "prompt": cue.prompt} for cue in request.starts],
        "switch": str(request.switch),
        "replayed": request.replay is not None,
        "resumed_at_latent_frame": request.resumed.next_frame if request.resumed else None,
        "blocks": blocks,
        "video_frames": video_frames,
        "fps": request.config.fps,
        "versions": {name: _version(name) for name in packages},
        "machine": platform.machine(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
