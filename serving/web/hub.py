"""One session's viewers: every picture is encoded once and handed to all of them.

Lives on the event loop; what other threads report is brought there first.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from longlive_trt.serving.live.encoding import EncodedPicture
from longlive_trt.serving.live.plan import Cut
from longlive_trt.serving.live.schedule import Cue
from longlive_trt.serving.media.mp4 import Timing, fragment
from longlive_trt.serving.protocol import (
    KEY,
    KINDS,
    LAST_OF_BLOCK,
    Format,
    InteractionApplied,
    Message,
    Notice,
    Picture,
    VideoChunkMetadata,
    VideoCut,
)

_MOST_BYTES = 4 << 20
_MOST_PICTURES = 96
"""What may wait for one viewer; a viewer that is further behind goes on at the newest block."""
_KEPT_PICTURES = 96


@dataclass(frozen=True)
class Outgoing:
    """A text or a binary message; pictures know what they show."""

    data: str | bytes
    picture: EncodedPicture | None = None


class Viewer:
    """What waits to be sent to one socket."""

    def __init__(self, kind: Format, on_drop: Callable[[int], None]) -> None:
        self.kind = kind
        self._on_drop = on_drop
        self._waiting: deque[Outgoing] = deque()
        self._bytes = 0
        self._pictures = 0
        self._filled = asyncio.Event()
        self.is_closed = False
        self.chunks = 0
        self.dropped = 0
        self.from_frame = 0
        """What comes before it was had from elsewhere."""

    def message(self, message: Message) -> None:
        self._put(Outgoing(message.model_dump_json()))

    def binary(self, data: bytes) -> None:
        self.forward(data)

    def forward(self, data: str | bytes) -> None:
        """As it is."""
        self._put(Outgoing(data))

    def offer(self, picture: EncodedPicture) -> None:
        if picture.frame >= self.from_frame:
            self.picture(picture)

    def picture(self, picture: EncodedPicture) -> None:
        data = self._packed(picture)
        self._bytes += len(data)
        self._pictures += 1
        self._put(Outgoing(data, picture))
        if picture.is_last and self._is_behind:
            self._skip_to(picture.block)

    def take_back(self, cut: Cut) -> None:
        """Pictures that were not sent yet, and will not be."""
        self._keep(lambda shown: shown.frame < cut.frame)

    def close(self) -> None:
        self.is_closed = True
        self._filled.set()

    async def next(self) -> Outgoing | None:
        """None once it is closed and empty."""
        while not self._waiting:
            if self.is_closed:
                return None
            self._filled.clear()
            await self._filled.wait()
        item = self._waiting.popleft()
        if item.picture is not None:
            self._bytes -= len(item.data)
            self._pictures -= 1
        return item

    @property
    def _is_behind(self) -> bool:
        return self._bytes > _MOST_BYTES or self._pictures > _MOST_PICTURES

    def _skip_to(self, block: int) -> None:
        before = self._pictures
        self._keep(lambda shown: shown.block >= block)
        self.dropped += before - self._pictures
        self._on_drop(before - self._pictures)

    def _keep(self, wanted: Callable[[EncodedPicture], bool]) -> None:
        kept = [item for item in self._waiting if item.picture is None or wanted(item.picture)]
        self._waiting = deque(kept)
        pictures = [item for item in kept if item.picture is not None]
        self._pictures = len(pictures)
        self._bytes = sum(len(item.data) for item in pictures)

    def _packed(self, picture: EncodedPicture) -> bytes:
        flags = LAST_OF_BLOCK if picture.is_last else 0
        if self.kind == "jpeg":
            flags |= KEY
            payload = picture.jpeg or b""
        else:
            flags |= KEY if picture.sample.is_key else 0
            payload = picture.sample.data
        kind = KINDS[self.kind]
        return Picture(kind, flags, picture.epoch, picture.frame, picture.pts_us, payload).pack()

    def _put(self, item: Outgoing) -> None:
        if not self.is_closed:
            self._waiting.append(item)
            self._filled.set()


class FragmentViewer(Viewer):
    """Gets a block when its turn on screen has come: what was sent is never taken back, so that
    the fragments in their order are one video.
    """

    def __init__(self, timing: Timing, on_drop: Callable[[int], None]) -> None:
        super().__init__("m4s", on_drop)
        self._timing, self._request_id = timing, ""
        self._held: deque[list[EncodedPicture]] = deque()
        self._coming: list[EncodedPicture] = []
        self._sent_pictures = 0

    def picture(self, picture: EncodedPicture) -> None:
        if picture.sample.is_key:
            self._coming = []
        elif not self._coming:
            return
        self._coming.append(picture)
        if picture.is_last:
            self._held.append(self._coming)
            self._coming = []

    def take_back(self, cut: Cut) -> None:
        self._held = deque(block for block in self._held if block[0].frame < cut.frame)
        self._coming = []

    def release(self, first_unseen: int) -> None:
        """Send the blocks before this one."""
        while self._held and self._held[0][0].block < first_unseen:
            self._send(self._held.popleft())

    def begin(self, data: bytes, epoch: int, request_id: str) -> None:
        self._request_id = request_id
        self._announce(data, epoch)

    def go_on(self, chunks: int, pictures: int) -> None:
        """After so many chunks and pictures that came from elsewhere, their beginning included."""
        self.chunks, self._sent_pictures = chunks, pictures

    def release_all(self) -> None:
        self.release(1 << 62)

    def _send(self, block: list[EncodedPicture]) -> None:
        samples = [picture.sample for picture in block]
        data = fragment(self.chunks, self._sent_pictures, samples, self._timing)
        self._announce(data, block[0].epoch, block)
        self._sent_pictures += len(block)

    def _announce(self, data: bytes, epoch: int, block: Sequence[EncodedPicture] = ()) -> None:
        self.message(
            VideoChunkMetadata(
                request_id=self._request_id,
                kind="media" if block else "init",
                transport_chunk_index=self.chunks,
                generation_chunk_index=block[0].block if block else None,
                epoch=epoch,
                frame=block[0].frame if block else 0,
                num_frames=len(block),
                byte_length=len(data),
            )
        )
        self.binary(data)
        self.chunks += 1


class Hub:
    """The observer of a session."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_change: Callable[[], None],
        on_finish: Callable[[], None],
        on_failure: Callable[[BaseException], None],
        on_first_picture: Callable[[float], None],
    ) -> None:
        self._loop = loop
        self._on_change, self._on_finish, self._on_failure = on_change, on_finish, on_failure
        self._on_first_picture = on_first_picture
        self.viewers: list[Viewer] = []
        self._recent: deque[EncodedPicture] = deque(maxlen=_KEPT_PICTURES)
        self._jpeg_viewers = 0
        self.expects_jpeg = False
        """The first viewer is on its way, and takes nothing else."""
        self._has_pictures = False
        self.on_applied: Callable[[Cue, int], None] = lambda _cue, _epoch: None

    # ---- from other threads ------------------------------------------------------------------

    @property
    def wants_jpeg(self) -> bool:
        return self._jpeg_viewers > 0 or self.expects_jpeg

    def picture(self, picture: EncodedPicture) -> None:
        self._call(self._take_picture, picture)

    def cut(self, cut: Cut) -> None:
        self._call(self._take_cut, cut)

    def applied(self, cue: Cue, epoch: int) -> None:
        self._call(self._take_applied, cue, epoch)

    def notice(self, text: str) -> None:
        self._call(self.tell, Notice(message=text))

    def changed(self) -> None:
        self._call(self._on_change)

    def finished(self) -> None:
        self._call(self._on_finish)

    def failed(self, error: BaseException) -> None:
        self._call(self._on_failure, error)

    # ---- on the loop -------------------------------------------------------------------------

    def join(self, viewer: Viewer, from_frame: int) -> None:
        """Take part from a block's first picture on, as far as pictures are at hand."""
        self.expects_jpeg = False
        if viewer.kind == "jpeg":
            self._jpeg_viewers += 1
        for picture in self._from_key(from_frame, viewer.kind):
            viewer.offer(picture)
        self.viewers.append(viewer)

    def leave(self, viewer: Viewer) -> None:
        if viewer in self.viewers:
            self.viewers.remove(viewer)
            if viewer.kind == "jpeg":
                self._jpeg_viewers -= 1
        viewer.close()

    def end(self) -> None:
        """The session is over: its pictures go now, and not with its recording. Its room goes too,
        which holds this one: what is no circle is freed as soon as it is forgotten.
        """
        self._recent.clear()
        self._on_change = self._on_finish = lambda: None
        self._on_failure = lambda _error: None
        self._on_first_picture = lambda _now: None
        self.on_applied = lambda _cue, _epoch: None

    def tell(self, message: Message) -> None:
        for viewer in self.viewers:
            viewer.message(message)

    def first_frame_at_hand(self) -> int | None:
        return self._recent[0].frame if self._recent else None

    @property
    def dropped(self) -> int:
        return sum(viewer.dropped for viewer in self.viewers)

    def _from_key(self, frame: int, kind: Format) -> Iterator[EncodedPicture]:
        pictures = [picture for picture in self._recent if picture.frame >= frame]
        if kind == "jpeg":
            pictures = [picture for picture in pictures if picture.jpeg]
        else:
            while pictures and not pictures[0].sample.is_key:
                pictures.pop(0)
        return iter(pictures)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop is closed: the server is going down, and nobody is there to tell.
            return

    def _take_picture(self, picture: EncodedPicture) -> None:
        if not self._has_pictures:
            self._has_pictures = True
            self._on_first_picture(time.monotonic())
        self._recent.append(picture)
        for viewer in self.viewers:
            if viewer.kind != "jpeg" or picture.jpeg:
                viewer.offer(picture)

    def _take_cut(self, cut: Cut) -> None:
        kept = [picture for picture in self._recent if picture.frame < cut.frame]
        self._recent = deque(kept, maxlen=_KEPT_PICTURES)
        for viewer in self.viewers:
            viewer.from_frame = min(viewer.from_frame, cut.frame)
            viewer.take_back(cut)
        self.tell(VideoCut(epoch=cut.epoch, frame=cut.frame, reason=cut.reason))

    def _take_applied(self, cue: Cue, epoch: int) -> None:
        self._on_change()
        self.on_applied(cue, epoch)


def applied(cue: Cue, frame: int, epoch: int) -> InteractionApplied:
    return InteractionApplied(
        event_id=cue.event_id, cue=cue.id, block=cue.block, frame=frame, epoch=epoch
    )
