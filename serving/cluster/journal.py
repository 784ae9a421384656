"""What a viewer has of its session, read from what passes by: enough to go on elsewhere."""

import json
from dataclasses import dataclass, field
from typing import Any

from longlive_trt.serving.cluster.calls import Item
from longlive_trt.serving.protocol import LAST_OF_BLOCK, Format, Picture


@dataclass
class Journal:
    format: Format
    frame: int = 0
    """The first picture of the first block that did not pass whole."""
    epoch: int = 0
    chunks: int = 0
    pictures: int = 0
    restarts: int = 0
    seed: int | None = None
    """Where the viewer began the video anew with another."""
    cues: tuple[tuple[int, int, str], ...] = ()
    has_begun: bool = False
    is_paused: bool = False
    decoder: str | None = None
    state: str | None = None
    """That the last owner saved when it gave the session away."""
    _unconfirmed: list[tuple[str, int | None]] = field(default_factory=list)
    """Prompts that were sent, and their cues once they have any."""

    def read(self, item: Item) -> dict[str, Any] | None:
        """The message, where it is one; to be called with everything, in its order."""
        if isinstance(item, bytes):
            self._read_binary(item)
            return None
        if isinstance(item, int):
            return None
        message: dict[str, Any] = json.loads(item)
        match message["type"]:
            case "video.start":
                self._begin(message)
            case "video.chunk_metadata":
                self._read_chunk(message)
            case "video.cut":
                self._cut(message)
            case "timeline":
                self._read_timeline(message["cues"])
            case "stats":
                self.is_paused, self.decoder = message["paused"], message["decoder"]
            case "session.interaction.queued":
                self._queued(message["cue"])
            case "error":
                self._refused()
            case "session.done":
                self.state = message["state"]
        return message

    def sent(self, text: str) -> None:
        """A prompt went to the owner."""
        self._unconfirmed.append((text, None))

    def take_unconfirmed(self) -> list[str]:
        """Prompts that may not have become part of the video: to be sent again."""
        texts, self._unconfirmed = [text for text, _ in self._unconfirmed], []
        return texts

    def _begin(self, message: dict[str, Any]) -> None:
        self.epoch = message["epoch"]
        if not self.has_begun:
            self.frame = message["frame"]
        self.has_begun = True

    def _read_binary(self, data: bytes) -> None:
        if self.format == "m4s":
            return
        picture = Picture.unpack(data)
        if picture.flags & LAST_OF_BLOCK:
            self.frame = picture.frame + 1

    def _read_chunk(self, message: dict[str, Any]) -> None:
        self.chunks = message["transport_chunk_index"] + 1
        self.pictures += message["num_frames"]
        if message["kind"] == "media":
            self.frame = message["frame"] + message["num_frames"]

    def _cut(self, message: dict[str, Any]) -> None:
        self.epoch = message["epoch"]
        self.frame = min(self.frame, message["frame"])
        if message["reason"] == "restart":
            self.restarts += 1

    def _read_timeline(self, cues: list[dict[str, Any]]) -> None:
        self.cues = tuple((cue["id"], cue["block"], cue["prompt"]) for cue in cues)
        known = {cue["id"] for cue in cues}
        self._unconfirmed = [item for item in self._unconfirmed if item[1] not in known]

    def _queued(self, cue: int) -> None:
        for number, (text, known) in enumerate(self._unconfirmed):
            if known is None:
                self._unconfirmed[number] = (text, cue)
                return

    def _refused(self) -> None:
        for number, (_, known) in enumerate(self._unconfirmed):
            if known is None:
                del self._unconfirmed[number]
                return
