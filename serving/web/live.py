"""The server's heart: one model, the thread that makes its blocks, and all sessions."""

import asyncio
import logging
import math
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from longlive_trt.errors import UsageError
from longlive_trt.serving.engine import LiveModel
from longlive_trt.serving.live.clock import VideoClock
from longlive_trt.serving.live.generator import Generator
from longlive_trt.serving.live.kept.states import States
from longlive_trt.serving.live.session import LiveSession
from longlive_trt.serving.live.wish import Known, Wish, require_decoder
from longlive_trt.serving.operation.metrics import Metrics
from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.settings import Limits, Settings
from longlive_trt.serving.web.hub import Hub
from longlive_trt.serving.web.remakes import Remakes
from longlive_trt.serving.web.room import House
from longlive_trt.serving.web.rooms import Rooms

logger = logging.getLogger(__name__)

_KEEP_FREE = 0.9
_MOST_SLOTS = 64
_WARM_BLOCKS = 3


def folder_states(folder: Path, limits: Limits) -> States:
    return States(folder, most=limits.states, most_bytes=limits.states_bytes)


class Live:
    """Opened on the event loop; the model was loaded before, or is loaded by :meth:`start`."""

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], LiveModel],
        states: Callable[[Path, Limits], States] = folder_states,
    ) -> None:
        self.settings, self._load = settings, load
        self.is_ready = self.is_draining = False
        self.failure: str | None = None
        self._given_folder = settings.data is not None
        self.folder = settings.data or Path(tempfile.mkdtemp(prefix="longlive-serve-"))
        self.states = states(self.folder / "states", settings.limits)
        self._recordings: Path | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._model: LiveModel | None = None
        self._rooms: Rooms | None = None

    @property
    def model(self) -> LiveModel:
        if self._model is None:
            raise ProblemError("loading", "The model is being loaded.", retry_after_s=5)
        return self._model

    @property
    def rooms(self) -> Rooms:
        if self._rooms is None:
            raise ProblemError("loading", "The model is being loaded.", retry_after_s=5)
        return self._rooms

    async def start(self) -> None:
        # Another server may use the same folder for its states.
        self._recordings = Path(tempfile.mkdtemp(prefix="recordings-", dir=self.folder))
        model = await asyncio.to_thread(self._load)
        block_s = await asyncio.to_thread(_measured_block_s, model)
        facts = model.facts
        slots = self.settings.sessions or _slots(model, block_s)
        self.metrics = Metrics(facts.name, facts.bundle_key)
        self._generator = Generator()
        self.remakes = Remakes(model, self._generator, self.settings.remake_patience_s)
        house = House(
            self.settings,
            self.states,
            self.metrics,
            slots=lambda: self.rooms.slots,
            running=lambda: self.rooms.running,
        )
        self._model, self._rooms = model, Rooms(house, slots)
        self._ticking = asyncio.create_task(self._rooms.tick_forever())
        self.metrics.slots.set(slots)
        self.is_ready = not self.is_draining
        logger.info(
            "ready",
            extra={"model": facts.name, "slots": slots, "block_ms": round(block_s * 1000, 1)},
        )

    def opener(
        self,
        *,
        prompt: str,
        seed: int | None = None,
        switch: str = "exact",
        cues: tuple[tuple[int, str], ...] = (),
        frames: int | None = None,
        paced: bool = True,
        resume: str | None = None,
        decoder: str | None = None,
        known: Known | None = None,
    ) -> Callable[[Hub], LiveSession]:
        """Checked now, opened when there is room."""
        try:
            mode = self.model.check_switch(switch)
        except UsageError as error:
            raise ProblemError("bad_request", str(error).replace("--switch", "switch")) from None
        if len(prompt) > self.settings.limits.prompt_characters:
            raise ProblemError(
                "prompt_too_long",
                f"A prompt may have {self.settings.limits.prompt_characters} characters at most.",
            )
        if decoder is not None:
            require_decoder(self.model.facts, decoder)
        saved = None
        if resume is not None:
            saved = self.states.find(resume)
            if saved.bundle_key != self.model.facts.bundle_key:
                raise ProblemError(
                    "conflict",
                    f"That state was saved with another model than this server runs: its bundle's "
                    f"key is {saved.bundle_key[:16]}, the server's "
                    f"{self.model.facts.bundle_key[:16]}.",
                )
        wish = Wish(
            prompt=prompt,
            seed=secrets.randbelow(1 << 32) if seed is None else seed,
            switch=mode,
            cues=cues,
            frames=frames,
            paced=paced,
            decoder=decoder,
            saved=saved,
            known=known,
        )
        recordings = self._recordings
        assert recordings is not None
        shared = (self.metrics, self.settings, recordings)
        return lambda hub: LiveSession(self.model, self._generator, wish, hub, *shared)

    async def drain(self) -> list[str]:
        """The ids of the states that were saved."""
        self.is_ready, self.is_draining = False, True
        if self._rooms is not None:
            self.remakes.stop()
        return await self._rooms.drain() if self._rooms is not None else []

    async def stop(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        if self._rooms is not None:
            self._rooms.close()
            await asyncio.to_thread(self._generator.close)
            await asyncio.to_thread(self.model.close)
        if self._recordings is not None:
            shutil.rmtree(self._recordings, ignore_errors=True)
        if not self._given_folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def _measured_block_s(model: LiveModel) -> float:
    """What one block takes here when nothing else runs, pictures included; also warms up."""
    video = model.open(0, "exact")
    try:
        video.prompt("warming up")
        took = []
        for _ in range(_WARM_BLOCKS):
            begun = time.monotonic()
            _ = video.step().frames
            took.append(time.monotonic() - begun)
        return min(took[1:])
    finally:
        video.close()


def _slots(model: LiveModel, block_s: float) -> int:
    """As many sessions as run in real time and fit into memory; one in any case."""
    facts = model.facts
    clock = VideoClock(facts.fps, facts.block_latents, facts.temporal_factor)
    by_speed = math.floor(_KEEP_FREE * clock.block_s / max(block_s, 1e-4))
    by_memory = math.floor(_KEEP_FREE * facts.free_bytes / max(facts.session_bytes * 3, 1))
    return max(1, min(by_speed, by_memory, _MOST_SLOTS))
