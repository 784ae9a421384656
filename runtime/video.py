"""A video in the making, as the public API has it."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

import numpy as np

from longlive_trt.basics import Closing
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.errors import UsageError
from longlive_trt.runtime.adapting import AdaptersInUse, AskedAdapter
from longlive_trt.runtime.noise import FloatArray
from longlive_trt.runtime.output import FrameWriter, open_writer
from longlive_trt.runtime.output.base import Pixels
from longlive_trt.runtime.output.tags import Tags, video_tags
from longlive_trt.runtime.plan import Plan, require_text_encoder
from longlive_trt.runtime.prompting.switches import SwitchMode
from longlive_trt.runtime.prompting.timeline import Cue, check_prompt
from longlive_trt.runtime.prompting.track import PromptTrack, Shown
from longlive_trt.runtime.session import Block, Checkpoint, Session
from longlive_trt.runtime.state import require_savable, save_state

_NO_PICTURES = "this video makes no pictures: it was asked for with decode=False"


@contextmanager
def _unread_refused(index: int) -> Iterator[None]:
    try:
        yield
    except CancelledError:
        raise UsageError(
            f"block {index}: its pictures were never read, and its video is closed; read a block's "
            "frames before that"
        ) from None


class VideoBlock:
    """A few frames of a video. They may still be on their way."""

    def __init__(self, block: Block, plan: Plan, prompt: str) -> None:
        self._block, self._plan = block, plan
        self.prompt = prompt
        """What the video shows or turns to; a replay's prompts have the names of its file."""

    @property
    def index(self) -> int:
        """Blocks of the whole video are counted from 0, those before a resumed one too."""
        return self._block.index

    @property
    def is_start(self) -> bool:
        """Its latents were given."""
        return self.index < self._plan.start_blocks

    @property
    def first_frame(self) -> int:
        """The number in the whole video of the block's first picture."""
        return self._plan.video_frames(0, self.index)

    @property
    def frame_count(self) -> int:
        return self._plan.video_frames(self.index, self.index + 1)

    @property
    def frames(self) -> Pixels:
        """Pictures [n, height, width, 3]; of several videos [batch, n, height, width, 3].

        Waits until they are decoded.
        """
        return self.rows[0] if self._plan.batch == 1 else self.rows

    @property
    def rows(self) -> Pixels:
        """The pictures with the batch before them, also where it is one video."""
        if not self._plan.decodes:
            raise UsageError(_NO_PICTURES)
        with _unread_refused(self.index):
            return np.asarray(self._block.pixels(), np.uint8)

    def pictures(self) -> Iterator[Pixels]:
        """The frames one after another, each when it is decoded; those of a first latent frame may
        be there before the others. Of several videos, [batch, height, width, 3].
        """
        if not self._plan.decodes:
            raise UsageError(_NO_PICTURES)
        with _unread_refused(self.index):
            for part in self._block.parts():
                rows = np.asarray(part, np.uint8)
                yield from rows[0] if self._plan.batch == 1 else rows.swapaxes(0, 1)

    @property
    def latents(self) -> FloatArray:
        """float32 [batch, frames, channels, height, width]; waits until they are there."""
        return self._block.latents

    def fetch(self) -> None:
        """Wait for everything."""
        _ = self.latents
        if self._plan.decodes:
            _ = self.rows


@dataclass(frozen=True)
class VideoCheckpoint:
    session: Checkpoint
    shown: Shown
    made_with: tuple[str, ...]
    """The adapters of the last block."""


class Video(Closing):
    """Iterating makes block after block.

    One thread makes the blocks; others may give prompts meanwhile.
    """

    def __init__(
        self,
        bundle: Bundle,
        plan: Plan,
        session: Session,
        track: PromptTrack,
        adapters: Callable[[], AdaptersInUse] = AdaptersInUse,
    ) -> None:
        """``adapters``: those that the next block is made with."""
        self.bundle, self.plan, self.session = bundle, plan, session
        self._track, self._adapters = track, adapters
        self._made_with = plan.resumed.lora if plan.resumed else ()
        self._blocks: WeakSet[VideoBlock] = WeakSet()
        self.is_between_blocks = True
        """A block that was begun and failed leaves a video that cannot go on from here."""
        self.is_closed = False
        resumed = plan.resumed
        self._prompts = [Cue(resumed.next_frame, resumed.prompt)] if resumed else []
        """What has been shown, by the latent frame from which it is."""

    @property
    def fps(self) -> float:
        return self.plan.config.fps

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        size = self.plan.config.video_size
        if size is None or not self.plan.decodes:
            raise UsageError(_NO_PICTURES)
        return size

    @property
    def blocks_made(self) -> int:
        """Of the whole video: the number of the next block."""
        return self.session.blocks_made

    @property
    def made_with(self) -> tuple[str, ...]:
        """The adapters of the last block: each file's sha256 and scale."""
        return self._made_with

    @property
    def shown(self) -> Shown:
        return self._track.shown

    def __iter__(self) -> Iterator[VideoBlock]:
        return self

    def __next__(self) -> VideoBlock:
        if not self.is_closed and self.blocks_made == self.plan.end_block:
            raise StopIteration
        return self.step()

    def begin(self) -> None:
        """Go through what the video begins with and does not show; the first block does it too."""
        self._require_open()
        while self.blocks_made < self.plan.first_block:
            # The decoder has room for the pictures of a few blocks only.
            self._step().fetch()

    def step(self) -> VideoBlock:
        """Make the next block; its pictures are decoded beside what the caller does next."""
        self.begin()
        return self._step()

    def _step(self) -> VideoBlock:
        if self.blocks_made == self.plan.end_block:
            raise UsageError(
                f"the video ends after {self.blocks_made} blocks; ask for a longer one"
            )
        self.is_between_blocks = False
        first_frame, before = self.session.ring.next_frame, self._track.prompt
        adapters = self._adapters()
        if first_frame and adapters.labels != self._made_with:
            self._track.renew(adapters.mode)
        change = self._track.due(first_frame)
        if change is not None:
            self.session.switch_prompt(*change)
        if self._track.prompt != before:
            earlier = [cue for cue in self._prompts if cue.frame < first_frame]
            self._prompts = [*earlier, Cue(first_frame, self._track.prompt)]
        block = self.session.step()
        self._made_with = adapters.labels
        self.is_between_blocks = True
        handed_out = VideoBlock(block, self.plan, self._track.prompt)
        self._blocks.add(handed_out)
        return handed_out

    def ahead(self, blocks: int = 1) -> Iterator[VideoBlock]:
        """The same blocks, each handed out when so many later ones have been begun.

        Pictures are then decoded while the next block is made, and a prompt takes effect so many
        blocks later.
        """
        waiting: deque[VideoBlock] = deque()
        for block in self:
            waiting.append(block)
            if len(waiting) > blocks:
                yield waiting.popleft()
        yield from waiting

    def prompt(self, text: str, mode: str | None = None) -> None:
        """Show this from the next block on; the latest prompt before a block counts.

        ``mode`` is how the video changes to it: ``exact``, ``partial``, ``none`` or ``blend:N``;
        without one, as the video was asked for.
        """
        self._require_open()
        if self.plan.replay is not None:
            raise UsageError("a replay has its own prompts: make a video of prompts to change them")
        if not isinstance(text, str):
            raise UsageError(f"the prompt is {text!r}, not a text")
        check_prompt(text, "prompt")
        require_text_encoder(self.bundle)
        self._track.ask(text, None if mode is None else SwitchMode.parse(mode, "mode"))

    def decoder(self, name: str) -> None:
        """Make pictures with the ``full`` or the ``light`` decoder from the next block on.

        It first looks at the latents that the video remembers, which takes as long as decoding
        those.
        """
        self._require_open()
        self._require_between_blocks("given another decoder")
        self.session.use_decoder(name)

    def use_lora(self, *adapters: AskedAdapter, switch: str = "exact") -> None:
        """Make the blocks from the next one on with these adapters; with none, as it was built.

        For the only open video of its pipeline: all of them share one copy of the matrices.
        ``switch`` says whether its past is recomputed (``exact``, ``partial``) or not (``none``).
        """
        self._require_open()
        self._require_between_blocks("given other adapters")
        self.session.use_lora(*adapters, switch=switch)

    def checkpoint(self) -> VideoCheckpoint:
        """Remember how things stand, to come back with :meth:`rollback`."""
        self._require_open()
        self._require_between_blocks("remembered")
        return VideoCheckpoint(self.session.checkpoint(), self._track.shown, self._made_with)

    def rollback(self, checkpoint: VideoCheckpoint) -> None:
        """Forget the blocks and the prompts since; the next block is made anew."""
        self._require_open()
        self.session.rollback(checkpoint.session)
        self._track.go_back(checkpoint.shown)
        self._made_with = checkpoint.made_with
        next_frame = self.session.ring.next_frame
        self._prompts = [cue for cue in self._prompts if cue.frame < next_frame]
        self.is_between_blocks = True

    def save_state(self, path: str | Path, *, overwrite: bool = True) -> None:
        """What another process needs to go on after the last block, bit for bit.

        A prompt that no block has taken yet is not in it.
        """
        self._require_open()
        self._require_between_blocks("saved")
        if self.blocks_made < self.plan.start_blocks:
            raise UsageError(
                "a state knows nothing of what a video is to begin with: save it after the blocks "
                "of its start"
            )
        require_savable(self.plan.config)
        if self.plan.replay is not None:
            raise UsageError(
                "a replay takes its noise from a file, and a state has a seed: it cannot be saved"
            )
        save_state(
            Path(path),
            self.session,
            bundle_key=self.bundle.manifest.key,
            seed=self.plan.seed,
            prompt=self._track.prompt,
            switch=self.plan.switch,
            blend=self._track.blend,
            lora=self._made_with,
            overwrite=overwrite,
        )

    def writer(self, path: str | Path | None, *, overwrite: bool = False) -> FrameWriter:
        """Takes the frames of blocks: an MP4, MOV or GIF file, or a folder of PNG files.

        ``-`` is stdout, in Y4M; None is no file at all: frames are only counted.
        """
        return open_writer(path, self.fps, *self.size, overwrite, self._tags)

    def _tags(self) -> Tags:
        plan = self.plan
        if plan.replay is not None:
            return video_tags((), model=plan.config.name, seed=None)
        first = plan.config.video_frames(plan.first_block * plan.block_frames)
        starts = {
            max(0, plan.config.video_frames(cue.frame) - first) / self.fps: cue.prompt
            for cue in self._prompts or plan.cues
        }
        return video_tags(list(starts.items()), model=plan.config.name, seed=plan.seed)

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.session.close()
            self._track.source.close()

    def __exit__(self, *error: object) -> None:
        """Blocks that somebody still holds can be read afterwards, unless something failed."""
        try:
            if error[:1] == (None,):
                for block in list(self._blocks):
                    block.fetch()
        finally:
            self.close()

    def _require_open(self) -> None:
        if self.is_closed:
            raise UsageError("the video is closed; ask the pipeline for another one")

    def _require_between_blocks(self, done: str) -> None:
        if not self.is_between_blocks:
            raise UsageError(
                f"the last block was not finished, so the video cannot be {done}; go back to a "
                "checkpoint first"
            )
