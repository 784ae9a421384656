"""Carries a plan out on one video. Everything here happens on the thread that makes blocks."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from longlive_trt.serving.engine import LiveModel, LiveVideo, MadeBlock
from longlive_trt.serving.live.hidden import Speculation
from longlive_trt.serving.live.plan import Adopt, Cut, Make, Plan, Speculate


class Maker:
    def __init__(
        self,
        model: LiveModel,
        plan: Plan,
        seed: int,
        switch: str,
        *,
        state: Path | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model, self._plan, self._now = model, plan, now
        self.seed, self._switch = seed, switch
        self._video: LiveVideo | None = None
        self._state = state
        self._checkpoints: dict[int, Any] = {}
        """How the video stood before a block, for those that may be made anew."""
        self.made_in_s = 0.0
        """How long the model took for the last block, without what was kept or put back for it."""
        self.decoder: str | None = None
        """Which is to make the pictures; None leaves it as it is."""
        self.decoder_in_use: str | None = None
        self._is_astray = False
        """The video went on from what was taken back since."""

    def make(self, turn: Make) -> MadeBlock | None:
        """None if the turn has become void."""
        edits = self._plan.begin_turn(turn)
        if edits is None:
            return None
        self._follow(edits)
        self._stand_before(turn.block)
        self._forget_what_was_seen()
        video = self._opened()
        if turn.block > 0:
            self._keep(turn.block)
        self._look(video)
        begun = self._now()
        if turn.cue is not None:
            video.prompt(turn.cue.prompt)
        made = _waited_for(video.step())
        self.made_in_s = self._now() - begun
        return made

    def speculate(self, turn: Speculate) -> Speculation | None:
        """Make a block beside the video's own line, and come back as if nothing had been."""
        edits = self._plan.begin_turn(turn)
        if edits is None:
            return None
        self._follow(edits)
        video = self._opened()
        home = video.blocks_made
        if self._is_astray or home != self._plan.made:
            return None
        self._keep(home)
        if turn.block not in self._checkpoints:
            return None
        if turn.block != home:
            video.rollback(self._checkpoints[turn.block])
        self._look(video)
        video.prompt(turn.prompt)
        block = _waited_for(video.step())
        after = video.checkpoint()
        video.rollback(self._checkpoints[home])
        return Speculation(turn.block, turn.prompt, turn.epoch, block, after)

    def save(self, path: Path, block: int) -> int:
        """The state before a block, or before the nearest that can be had; says before which."""
        with self._plan.lock:
            home, edits = self._plan.made, self._plan.take_edits()
        self._follow(edits)
        self._stand_before(home)
        video = self._opened()
        target = block if block in self._checkpoints else home
        if target == home:
            video.save_state(path)
            return home
        self._keep(home)
        video.rollback(self._checkpoints[target])
        video.save_state(path)
        video.rollback(self._checkpoints[home])
        return target

    def restart(self, seed: int) -> None:
        """The next block is the first of another video."""
        self.close()
        self.seed, self._state = seed, None
        self._is_astray = False

    def close(self) -> None:
        self._checkpoints.clear()
        if self._video is not None:
            self._video.close()
            self._video = None

    @property
    def is_open(self) -> bool:
        return self._video is not None

    def _opened(self) -> LiveVideo:
        if self._video is None:
            self._video = self._model.open(self.seed, self._switch, self._state)
            if self._state is not None:
                self._keep(self._video.blocks_made)
        return self._video

    def _look(self, video: LiveVideo) -> None:
        """With the decoder that is wanted: a video that goes back has the one of that time."""
        used = video.decoder_name
        if used is not None and self.decoder not in (None, used):
            video.decoder(self.decoder)
        self.decoder_in_use = video.decoder_name

    def _keep(self, block: int) -> None:
        if block not in self._checkpoints and block > 0:
            self._checkpoints[block] = self._opened().checkpoint()

    def _stand_before(self, block: int) -> None:
        video = self._opened()
        if not self._is_astray and video.blocks_made == block:
            return
        if block == 0:
            video.close()
            self._video = None
            self._opened()
        else:
            video.rollback(self._checkpoints[block])
        self._is_astray = False

    def _follow(self, edits: Sequence[Cut | Adopt]) -> None:
        video = self._opened()
        for edit in edits:
            block = edit.speculation.block if isinstance(edit, Adopt) else edit.block
            self._checkpoints = {
                before: kept for before, kept in self._checkpoints.items() if before <= block
            }
            self._is_astray = self._is_astray or video.blocks_made > block
            if isinstance(edit, Adopt):
                self._checkpoints[block + 1] = edit.speculation.checkpoint
                self._is_astray = True

    def _forget_what_was_seen(self) -> None:
        first = self._plan.settle(self._now())
        self._checkpoints = {
            before: kept for before, kept in self._checkpoints.items() if before >= first
        }


def _waited_for(block: MadeBlock) -> MadeBlock:
    """Until the transformer is done with it: what is due first is made first, and nothing that may
    be taken back waits in a GPU's queue. The pictures may still be on their way.
    """
    _ = block.latents
    return block
