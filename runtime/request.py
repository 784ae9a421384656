"""What a run of ``generate`` is to make, and whether a bundle can."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.replay import Replay
from longlive_trt.contract import PROMPT, STEP, TEXT, VAE_FIRST
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.loader import DeviceChoice, require_runnable
from longlive_trt.errors import UsageError
from longlive_trt.runtime.prompting.switches import EXACT, SwitchMode
from longlive_trt.runtime.prompting.timeline import Cue
from longlive_trt.runtime.ring import RingLayout
from longlive_trt.runtime.state import SavedState


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
    bundle.require(STEP, "generating")
    bundle.require(PROMPT, "conditioning on a prompt")
    if request.starts:
        bundle.require(TEXT, "reading a prompt")
        _ = bundle.tokenizer
    if request.outputs.video is not None:
        bundle.require(VAE_FIRST, "making a video")
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
