"""One run of ``generate``: the block loop between a session and its outputs."""

import platform
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from longlive_trt.configs.dump import config_values
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.errors import LongLiveError, LostGpuError, OutputError
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.interrupts import StopRequest, stop_on_signals
from longlive_trt.runtime.noise import FloatArray, NoiseSource, ReplayNoise, SeededNoise
from longlive_trt.runtime.output import FrameWriter, open_writer, write_latents, write_sidecar
from longlive_trt.runtime.progress import Meter, Progress, Started
from longlive_trt.runtime.prompting.switches import (
    Mixer,
    NoSwitches,
    ReplaySwitches,
    Switches,
    TimelineSwitches,
)
from longlive_trt.runtime.request import Outputs as Outputs
from longlive_trt.runtime.request import Request as Request
from longlive_trt.runtime.request import check_request as check_request
from longlive_trt.runtime.session import Block, Session
from longlive_trt.runtime.state import restore, save_state
from longlive_trt.signals import interrupts_deferred


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
        except Exception as error:
            run.rescue(error)
            raise
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
        self._failure: Exception | None = None
        self._lacks_an_output = False

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
            self._pending.append(block)
            self._between_blocks = True
            if len(self._pending) > 1:
                # The block before was decoded while this one was made.
                self._hand_out()
        self.hand_out_rest()

    def hand_out_rest(self) -> None:
        while self._pending:
            self._hand_out()

    def rescue(self, error: Exception) -> None:
        """Hand out what was made before a failure, as far as it can be had."""
        self._failure = error
        if isinstance(error, OutputError):
            return
        try:
            self.hand_out_rest()
        except LongLiveError as another:
            block = self._pending[0].index + 1 if self._pending else self._session.blocks_made
            lost = isinstance(another, LostGpuError)
            reason = "were on the GPU still, and are lost" if lost else f"cannot be had: {another}"
            self._progress.notice(f"block {block} was made, and its pictures {reason}")

    def finish(self, interrupted: bool) -> None:
        """Leave whole files, whatever ended the run."""
        with ExitStack() as closing:
            # One that fails does not take the others with it.
            closing.callback(self._attempt, partial(self._tell_end, interrupted))
            closing.callback(self._attempt, self._save_state)
            closing.callback(self._attempt, self._write_latents)
            for writer in self._writers:
                closing.callback(self._attempt, partial(self._close, writer))

    def _tell_end(self, interrupted: bool) -> None:
        if self._lacks_an_output:
            return
        request, outputs = self._request, self._request.outputs
        finished = self._meter.finished(outputs.video, interrupted)
        with interrupts_deferred():
            if outputs.video is not None and finished.blocks:
                record = _record(self._bundle, request, finished.blocks, finished.video_frames)
                for video in outputs.videos(request.batch):
                    write_sidecar(str(video).rstrip("/"), record)
        self._progress.finished(finished)

    def _attempt(self, work: Callable[[], None]) -> None:
        """What fails because something else did is told beside it, not in its place."""
        try:
            work()
        except LongLiveError as error:
            if self._failure is None:
                self._lacks_an_output = True
                raise
            self._progress.notice(str(error))

    def _close(self, writer: FrameWriter) -> None:
        writer.close()
        for notice in writer.notices:
            self._progress.notice(notice)

    def _write_latents(self) -> None:
        path = self._request.outputs.latents
        if path is None:
            return
        try:
            # Those of a block whose pictures nobody took are there too, as in the state.
            made = [*self._latents, *(block.latents for block in self._pending)]
        except LostGpuError:
            made = self._latents
        if made:
            write_latents(path, np.concatenate(made, axis=1))

    def _save_state(self) -> None:
        path, session = self._request.outputs.state, self._session
        if path is None or not session.blocks_made:
            return
        if isinstance(self._failure, LostGpuError):
            self._progress.notice(f"{path}: not written; it was on the GPU, and is lost")
            return
        if not self._between_blocks:
            self._progress.notice(f"{path}: not written; the run ended in the middle of a block")
            return
        save_state(
            path,
            session,
            bundle_key=self._bundle.manifest.key,
            seed=self._request.seed,
            prompt=self._switches.prompt,
            switch=self._request.switch,
            blend=self._switches.blend,
        )
        if self._pending and self._writers:
            numbers = [str(block.index + 1) for block in self._pending]
            self._progress.notice(
                f"{path}: goes on after block {numbers[-1]}; without pictures: {', '.join(numbers)}"
            )

    def _hand_out(self) -> None:
        block = self._pending[0]
        pixels = block.pixels() if self._session.decoder is not None else ()
        latents = [block.latents] if self._request.outputs.latents is not None else []
        # Ctrl-C ends the waits above, but what is written is counted too.
        with interrupts_deferred():
            self._pending.popleft()
            self._latents += latents
            for row, writer in zip(pixels, self._writers, strict=True):
                writer.write(row)
            frames = self._request.video_frames(block.index, block.index + 1)
            done = self._meter.block(frames)
        self._progress.block(done)


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
    writers: list[FrameWriter] = []
    try:
        for video in outputs.videos(request.batch):
            fps = request.config.fps
            writers.append(open_writer(video, fps, height, width, outputs.overwrite))
    except BaseException:
        for writer in writers:
            writer.close()
        raise
    return writers


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
