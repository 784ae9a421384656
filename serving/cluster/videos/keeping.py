"""What a host keeps of a whole video that it makes: its pictures too, and the file at the end."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from longlive_trt.errors import OutputError
from longlive_trt.serving.cluster.store.keeping import Keeper
from longlive_trt.serving.cluster.videos.orders import Orders
from longlive_trt.serving.cluster.videos.parts import read_part, write_part
from longlive_trt.serving.live.kept.recording import Recording
from longlive_trt.serving.media.h264 import Sample

_LOOK_S = 0.05
_ENCODED_S = 30.0


class VideoKeeper(Keeper):
    def __init__(self, *shared: Any, orders: Orders) -> None:
        super().__init__(*shared)
        self._orders = orders
        self._kept_until = self.room.session.resumed_at

    async def _keep_pictures(self, frame: int) -> None:
        """All before a state's, so that the next host's file can begin with them."""
        if frame <= self._kept_until:
            return
        samples = await _encoded(self.room.session.recording, self._kept_until, frame)
        await asyncio.to_thread(self._put_part, samples, frame)
        self._kept_until = frame

    async def _finish(self) -> None:
        await asyncio.to_thread(self._put_content)

    def _put_part(self, samples: list[Sample], end: int) -> None:
        with tempfile.TemporaryDirectory(prefix="longlive-part-") as folder:
            path = Path(folder) / "part"
            write_part(path, samples)
            self._orders.put_part(self.room.id, path, self._kept_until, end)

    def _put_content(self) -> None:
        order = self._orders.read(self.room.id)
        if order is None:
            # It was deleted meanwhile.
            return
        # Whole blocks were made; what was asked for may be less.
        excerpt = self.room.session.recording.excerpt(until=order.frames)
        if excerpt is None:
            raise OutputError("nothing of the video was recorded")
        with tempfile.TemporaryDirectory(prefix="longlive-video-") as folder:
            path = Path(folder) / "video.mp4"
            with path.open("wb") as file:
                file.writelines(excerpt.read())
            self._orders.put_content(self.room.id, path)


async def _encoded(recording: Recording, first: int, end: int) -> list[Sample]:
    """Blocks are encoded a little later than they are made."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _ENCODED_S
    while (samples := recording.samples(first, end)) is None:
        if loop.time() > until:
            raise OutputError(f"pictures {first} to {end} were not recorded ({recording.failure})")
        await asyncio.sleep(_LOOK_S)
    return samples


def pictures_before(orders: Orders, video: str, frame: int) -> list[Sample] | None:
    """All that a video shows before a picture, from the parts in the store; None where some are
    not there. Every host makes the same of a block, so parts of several fit together.
    """
    parts, samples = orders.parts(video), list[Sample]()
    with tempfile.TemporaryDirectory(prefix="longlive-part-") as folder:
        while (at := len(samples)) < frame:
            end, first = max(
                ((to, begin) for begin, to in parts if begin <= at < to), default=(0, 0)
            )
            path = Path(folder) / "part"
            if not end or not orders.fetch_part(video, first, end, path):
                return None
            samples += read_part(path)[at - first :]
    return samples[:frame]
