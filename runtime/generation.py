"""One run of ``generate``: a video goes to its files, whole ones whatever ends the run."""

import platform
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from longlive_trt.configs.dump import config_values
from longlive_trt.console.signals import interrupts_deferred
from longlive_trt.console.streams import is_stdout
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.errors import LongLiveError, LostGpuError, NotFiniteError, OutputError
from longlive_trt.files import Claim, real_path
from longlive_trt.runtime.adaptive.pace import Pace
from longlive_trt.runtime.interrupts import StopRequest, stop_on_signals
from longlive_trt.runtime.noise import FloatArray
from longlive_trt.runtime.output import FrameWriter, write_latents, write_sidecar
from longlive_trt.runtime.output.base import make_folder
from longlive_trt.runtime.output.preview import Preview
from longlive_trt.runtime.pipeline import Pipeline
from longlive_trt.runtime.plan import Plan
from longlive_trt.runtime.progress import Finished, Meter, Progress, Started
from longlive_trt.runtime.video import Video, VideoBlock


@dataclass(frozen=True)
class Outputs:
    video: str | None = None
    """As the user wrote it: a trailing slash means a folder of pictures."""
    latents: Path | None = None
    state: Path | None = None
    overwrite: bool = False
    preview: Path | None = None
    """A PNG file with the newest picture."""

    @property
    def to_stdout(self) -> bool:
        return self.video is not None and is_stdout(self.video)

    @property
    def shown(self) -> str | None:
        """What a message calls the video."""
        return "stdout" if self.to_stdout else self.video

    def videos(self, batch: int) -> list[str | None]:
        """One video for each row of the batch; several are numbered before the ending."""
        if self.video is None or self.to_stdout or batch == 1:
            return [self.video] * batch
        path = Path(self.video)
        slash = "/" if self.video.endswith("/") else ""
        return [
            str(path.with_name(f"{path.stem}.{row}{path.suffix}")) + slash for row in range(batch)
        ]


def generate(
    pipeline: Pipeline,
    plan: Plan,
    outputs: Outputs,
    progress: Progress,
    command: str = "",
    pace: Pace | None = None,
) -> bool:
    """Make the video; True if it was interrupted. What was made is kept in any case."""
    with ExitStack() as stack:
        for path in (outputs.latents, outputs.state, outputs.preview):
            if path is not None:
                make_folder(path.parent)
                stack.callback(Claim(real_path(path)).release)
        video = stack.enter_context(pipeline.open(plan, progress.notice))
        stop = stack.enter_context(stop_on_signals(progress.notice))
        run = _Run(video, outputs, _open_writers(video, outputs), progress, command, pace)
        try:
            run.make(stop)
        except KeyboardInterrupt:
            stop.is_asked = True
            run.hand_out_rest()
        except Exception as error:
            run.rescue(error)
            raise
        finally:
            run.finish(stop.is_asked)
    return stop.is_asked


class _Run:
    def __init__(
        self,
        video: Video,
        outputs: Outputs,
        writers: Sequence[FrameWriter],
        progress: Progress,
        command: str,
        pace: Pace | None,
    ) -> None:
        self._video, self._plan, self._outputs, self._pace = video, video.plan, outputs, pace
        self._writers, self._progress, self._command = writers, progress, command
        self._meter = Meter(self._plan.end_block, first_block=self._plan.first_block)
        self._latents: list[FloatArray] = []
        self._pending: deque[VideoBlock] = deque()
        self._blocks_taken = self._plan.first_block
        self._failure: Exception | None = None
        self._lacks_an_output = False
        self._preview = Preview(outputs.preview) if outputs.preview is not None else None

    def make(self, stop: StopRequest) -> None:
        plan, end = self._plan, self._plan.end_block
        frames = None if end is None else plan.video_frames(plan.first_block, end)
        shown = self._outputs.shown
        self._progress.started(Started(plan.blocks_shown, frames, plan.config.fps, shown))
        self._video.begin()
        while not stop.is_asked and self._video.blocks_made != end:
            if self._pace is not None:
                self._pace.before(self._video.blocks_made, self._video.session)
            block = self._video.step()
            self._pending.append(block)
            self._blocks_taken = block.index + 1
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
        # Neither a file that took no more nor a block of no numbers takes or gives any later ones.
        if isinstance(error, OutputError | NotFiniteError):
            return
        try:
            self.hand_out_rest()
        except LongLiveError as another:
            block = self._pending[0].index + 1 if self._pending else self._video.blocks_made
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
        finished = self._kept(self._meter.finished(self._outputs.shown, interrupted))
        try:
            with interrupts_deferred():
                for writer in self._writers:
                    self._write_record(writer)
        except KeyboardInterrupt:
            # All is written: that it was pressed again does not hide what.
            self._tell(finished)
            raise
        self._tell(finished)

    def _tell(self, finished: Finished) -> None:
        if self._pace is not None:
            self._progress.notice(self._pace.summary())
        if not self._lacks_an_output:
            self._progress.finished(finished)

    def _kept(self, finished: Finished) -> Finished:
        """What the files hold, where they hold less than was made."""
        frames = min((writer.frames_kept for writer in self._writers), default=None)
        if frames is None or frames == finished.video_frames:
            return finished
        output = finished.output if frames else None
        blocks = self._whole_blocks(frames)
        return replace(finished, video_frames=frames, blocks=blocks, output=output)

    def _whole_blocks(self, frames: int) -> int:
        first, blocks = self._plan.first_block, 0
        while self._plan.video_frames(first, first + blocks + 1) <= frames:
            blocks += 1
        return blocks

    def _write_record(self, writer: FrameWriter) -> None:
        outputs = self._outputs
        if outputs.video is None or outputs.to_stdout or not writer.frames_kept:
            return
        frames = writer.frames_kept
        lora, blocks = self._video.made_with, self._whole_blocks(frames)
        record = _record(self._video.bundle, self._plan, blocks, frames, lora)
        pace = {} if self._pace is None else {"pace": self._pace.record()}
        write_sidecar(writer.path, {"command": self._command, **record, **pace})

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
        path = self._outputs.latents
        if path is None:
            return
        latents = list(self._latents)
        # Those of a block whose pictures nobody took are there too, as in the state.
        with suppress(LostGpuError, NotFiniteError):
            for block in self._pending:
                latents.append(block.latents)
        if latents:
            overwrite = self._outputs.overwrite
            write_latents(path, np.concatenate(latents, axis=1), overwrite=overwrite)

    def _save_state(self) -> None:
        path, video = self._outputs.state, self._video
        if path is None or not video.blocks_made:
            return
        if isinstance(self._failure, LostGpuError):
            self._progress.notice(f"{path}: not written; it was on the GPU, and is lost")
            return
        # Ctrl-C may have come between a block and its being taken.
        if not video.is_between_blocks or video.blocks_made != self._blocks_taken:
            self._progress.notice(f"{path}: not written; the run ended in the middle of a block")
            return
        video.save_state(path, overwrite=self._outputs.overwrite)
        if self._pending and self._writers:
            numbers = [str(block.index + 1) for block in self._pending]
            self._progress.notice(
                f"{path}: goes on after block {numbers[-1]}; without pictures: {', '.join(numbers)}"
            )

    def _hand_out(self) -> None:
        block = self._pending[0]
        rows = list(block.rows) if self._plan.decodes else []
        latents = [block.latents] if self._outputs.latents is not None else []
        # Ctrl-C ends the waits above, but what is written is counted too.
        with interrupts_deferred():
            self._pending.popleft()
            self._latents += latents
            for row, writer in zip(rows, self._writers, strict=True):
                writer.write(row)
            done = self._meter.block(block.frame_count)
        if self._pace is not None:
            self._pace.after(block.index)
        self._progress.block(done)
        if self._preview is not None and (notice := self._preview.renew(rows)):
            self._progress.notice(notice)


def _open_writers(video: Video, outputs: Outputs) -> list[FrameWriter]:
    """One for each video of the batch; they count the frames where no file is wanted."""
    if not video.plan.decodes:
        return []
    writers: list[FrameWriter] = []
    try:
        for path in outputs.videos(video.plan.batch):
            writers.append(video.writer(path, overwrite=outputs.overwrite))
    except BaseException:
        for writer in writers:
            writer.close()
        raise
    return writers


def _record(
    bundle: Bundle, plan: Plan, blocks: int, video_frames: int, lora: Sequence[str]
) -> Mapping[str, object]:
    """What it takes to make the same video again."""
    manifest = bundle.manifest
    packages = ("longlive-trt", "numpy", "onnxruntime", "av")
    return {
        "bundle": str(bundle.folder),
        "bundle_key": manifest.key,
        "engine": f"{manifest.engine.kind} {manifest.engine.version}",
        "precision": manifest.precision,
        "config": config_values(plan.config),
        "seed": None if plan.replay else plan.seed,
        "prompts": [{"frame": cue.frame, "prompt": cue.prompt} for cue in plan.cues],
        "switch": str(plan.switch),
        "decoder": plan.decoder,
        "replayed": plan.replay is not None,
        "resumed_at_latent_frame": plan.resumed.next_frame if plan.resumed else None,
        "start": _start_record(plan),
        "lora": list(lora),
        "blocks": blocks,
        "video_frames": video_frames,
        "fps": plan.config.fps,
        "versions": {name: _version(name) for name in packages},
        "machine": platform.machine(),
    }


def _start_record(plan: Plan) -> Mapping[str, object] | None:
    start = plan.start
    if start is None:
        return None
    return {
        "file": str(start.path),
        "sha256": start.sha256,
        "blocks": plan.start_blocks,
        "is_shown": plan.include_start,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
