"""Everything that crosses the socket: typed messages, and the header of binary pictures.

Names are those of vLLM-Omni's realtime video protocol where it has them, so that its clients work:
``session.start`` to ``session.done``, and the form of ``session.interaction``. What it has no names
for (epochs, drafts, what was shown, timelines) is ours.
"""

import struct
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, model_validator

VERSION = 1

Format = Literal["h264", "jpeg", "m4s"]
Prompt = Annotated[str, StringConstraints(max_length=4000)]
Name = Annotated[str, StringConstraints(max_length=200, pattern=r"^[A-Za-z0-9._:/-]*$")]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Number = Annotated[int, Field(ge=0, lt=2**53)]
"""What JavaScript can count to."""


class Message(BaseModel):
    """Keys that this version does not know are passed over: newer clients may send them."""

    model_config = ConfigDict(extra="ignore", frozen=True)


# ---- from the client -------------------------------------------------------------------------


class CueAt(Message):
    """A prompt of a timeline, and the picture from which it is asked for."""

    frame: Number
    prompt: Prompt


class SessionStart(Message):
    """The first message. With ``session`` it joins one that runs, else it begins a new one."""

    type: Literal["session.start"]
    prompt: Prompt | None = None
    format: Format = "m4s"
    model: Name | None = None
    seed: Seed | None = None
    switch: Name = "exact"
    num_frames: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """The video ends after so many pictures, rounded up to whole blocks."""
    timeline: Annotated[list[CueAt], Field(max_length=500)] = []
    """Prompts that come later by themselves."""
    session: Name | None = None
    token: Name | None = None
    """The session's."""
    access: Annotated[str, StringConstraints(max_length=500)] | None = None
    """The server's, for clients that cannot send an Authorization header."""
    resume: Name | None = None
    """A saved state to go on from."""
    decoder: Name | None = None
    """Which is to make the pictures, of the model's."""


class InteractionEvent(Message):
    prompt: Prompt


class Interaction(Message):
    event: InteractionEvent
    event_id: Name | None = None


class SessionInteraction(Message):
    """A new prompt: at once, or from a picture on."""

    type: Literal["session.interaction"]
    prompt: Prompt | None = None
    interaction: Interaction | None = None
    event_id: Name | None = None
    frame: Number | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt is None) == (self.interaction is None):
            raise ValueError("give the new prompt once: as prompt, or as interaction.event.prompt")
        return self

    @property
    def text(self) -> str:
        return self.interaction.event.prompt if self.interaction else self.prompt or ""

    @property
    def event(self) -> str | None:
        return self.interaction.event_id if self.interaction else self.event_id


class TimelineEdit(Message):
    """Move or reword a prompt that nobody has seen yet."""

    type: Literal["timeline.edit"]
    cue: Number
    prompt: Prompt | None = None
    frame: Number | None = None


class TimelineRemove(Message):
    type: Literal["timeline.remove"]
    cue: Number


class PromptDraft(Message):
    """What is being typed; null when it was discarded."""

    type: Literal["prompt.draft"]
    prompt: Prompt | None = None


class PlaybackShown(Message):
    """The newest picture on the viewer's screen."""

    type: Literal["playback.shown"]
    epoch: Number
    frame: Number


class SessionPause(Message):
    type: Literal["session.pause"]


class SessionResume(Message):
    type: Literal["session.resume"]


class SessionDecoder(Message):
    """Pictures by another of the model's decoders, from the next block on that is made."""

    type: Literal["session.decoder"]
    decoder: Name


class SessionRestart(Message):
    """The same prompts from the beginning, with another seed or the same."""

    type: Literal["session.restart"]
    seed: Seed | None = None
    prompt: Prompt | None = None


class SessionPing(Message):
    type: Literal["session.ping"]
    sent_ms: float | None = None
    """Comes back, so that the sender knows the way's length."""


class SessionStop(Message):
    type: Literal["session.stop"]


ClientMessage: TypeAlias = Annotated[
    SessionStart
    | SessionInteraction
    | TimelineEdit
    | TimelineRemove
    | PromptDraft
    | PlaybackShown
    | SessionPause
    | SessionResume
    | SessionDecoder
    | SessionRestart
    | SessionPing
    | SessionStop,
    Field(discriminator="type"),
]


# ---- from the server -------------------------------------------------------------------------


class TakesEffect(Message):
    block: int
    frame: int
    in_ms: int
    """Until it is on screen, as far as is known now."""


CueState = Literal["sent", "made", "live", "past"]


class Cue(Message):
    id: int
    prompt: str
    frame: int
    block: int
    seconds: float
    state: CueState
    """``sent``: no block was made under it yet; ``made``: one was, and was not shown yet."""


class VideoStart(Message):
    type: Literal["video.start"] = "video.start"
    request_id: str
    session: str
    token: str
    model: str
    format: Format
    width: int
    height: int
    fps: float
    codec: str | None = None
    """As WebCodecs and Media Source Extensions name it."""
    description: str | None = None
    """Base64 of the decoder's configuration (avcC), for H.264 and for fragments."""
    epoch: int
    seed: str
    """A text, because JavaScript's numbers end before seeds do."""
    switch: str
    frame: int
    """The first picture that will come."""
    block_frames: int
    bundle_key: str
    resumed_at_frame: int = 0
    decoders: list[str] = ["full"]
    """Of the model: ``session.decoder`` chooses one."""
    decoder: str = "full"
    paused: bool = False


class VideoChunkMetadata(Message):
    """Is followed by one binary message: a whole fragment of an MP4."""

    type: Literal["video.chunk_metadata"] = "video.chunk_metadata"
    request_id: str
    kind: Literal["init", "media"]
    """``init`` describes the video and holds no picture."""
    transport_chunk_index: int
    generation_chunk_index: int | None
    """The block."""
    epoch: int
    frame: int
    num_frames: int
    byte_length: int


class SessionQueued(Message):
    type: Literal["session.queued"] = "session.queued"
    position: int
    """1 is the next to run."""
    waiting: int
    estimate_s: float | None = None


class InteractionQueued(Message):
    type: Literal["session.interaction.queued"] = "session.interaction.queued"
    event_id: str | None = None
    cue: int
    prompt: str
    takes_effect: TakesEffect
    speculated: bool = False
    """The block had been made from a draft already."""


class InteractionApplied(Message):
    """The first block under the prompt was made, and its pictures are on their way."""

    type: Literal["session.interaction.applied"] = "session.interaction.applied"
    event_id: str | None = None
    cue: int
    block: int
    frame: int
    epoch: int


class VideoCut(Message):
    """Pictures from ``frame`` on, of earlier epochs, are taken back: do not show them."""

    type: Literal["video.cut"] = "video.cut"
    epoch: int
    frame: int
    reason: str


class TimelineMessage(Message):
    """All prompts, after every change."""

    type: Literal["timeline"] = "timeline"
    cues: list[Cue]


class Stats(Message):
    type: Literal["stats"] = "stats"
    shown: int
    made: int
    lead_ms: int
    fps: float
    """Pictures made a second, while blocks are made."""
    stages_ms: dict[str, float]
    """Of the last block: text, recache, block, decode, encode."""
    block_ms: float
    """How long a block lasts on screen."""
    memory_bytes: int
    dropped: int
    viewers: int
    running: int
    slots: int
    paused: bool
    decoder: str = "full"
    speculation: Literal["off", "none", "encoded", "ready"] = "none"


class SessionPong(Message):
    type: Literal["session.pong"] = "session.pong"
    sent_ms: float | None = None


class Notice(Message):
    """Nothing failed, and a person may want to know."""

    type: Literal["session.notice"] = "session.notice"
    message: str


class SessionMoving(Message):
    """The session's machine goes, or has gone: another one makes what follows, the same bits."""

    type: Literal["session.moving"] = "session.moving"
    reason: Literal["drained", "lost"]
    frame: int
    """The first picture that comes from there."""
    message: str


class SessionMoved(Message):
    """It goes on, after so long."""

    type: Literal["session.moved"] = "session.moved"
    reason: Literal["drained", "lost"]
    frame: int
    after_s: float
    made_again: int
    """Blocks of which pictures were seen already: they are made again first, the same."""
    message: str
    """What was lost, where anything was."""


DoneReason = Literal["finished", "stopped", "idle", "left", "drained", "failed", "moved"]


class SessionDone(Message):
    type: Literal["session.done"] = "session.done"
    reason: DoneReason
    message: str
    frames: int
    request_id: str = ""
    chunks: int = 0
    """Fragments that this viewer was sent."""
    stopped: bool = False
    """Before it was at its end."""
    state: str | None = None
    """What ``resume`` takes."""


class ErrorMessage(Message):
    type: Literal["error"] = "error"
    code: str
    message: str
    event_id: str | None = None


ServerMessage: TypeAlias = Annotated[
    VideoStart
    | VideoChunkMetadata
    | SessionQueued
    | InteractionQueued
    | InteractionApplied
    | VideoCut
    | TimelineMessage
    | Stats
    | SessionPong
    | Notice
    | SessionMoving
    | SessionMoved
    | SessionDone
    | ErrorMessage,
    Field(discriminator="type"),
]

_FROM_CLIENT: TypeAdapter[Any] = TypeAdapter(ClientMessage)
_FROM_SERVER: TypeAdapter[Any] = TypeAdapter(ServerMessage)


def parse_client_message(text: str | bytes) -> Any:
    """One of the client's messages; pydantic's ValidationError says what is wrong with it."""
    return _FROM_CLIENT.validate_json(text, strict=False)


def parse_server_message(text: str | bytes) -> Any:
    return _FROM_SERVER.validate_json(text)


# ---- binary pictures -------------------------------------------------------------------------

KINDS: dict[str, int] = {"h264": 1, "jpeg": 2}
KEY, LAST_OF_BLOCK = 1, 2
"""Flags."""

_HEADER = struct.Struct(">BBBIQQ")
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True)
class Picture:
    """One picture on its way: ``frame`` counts from the video's first, ``pts_us`` microseconds."""

    kind: int
    flags: int
    epoch: int
    frame: int
    pts_us: int
    payload: bytes

    def pack(self) -> bytes:
        numbers = (VERSION, self.kind, self.flags, self.epoch, self.frame, self.pts_us)
        return _HEADER.pack(*numbers) + self.payload

    @classmethod
    def unpack(cls, data: bytes) -> "Picture":
        if len(data) < HEADER_BYTES:
            raise ValueError(f"a picture of {len(data)} bytes is shorter than its header")
        version, kind, flags, epoch, frame, pts_us = _HEADER.unpack_from(data)
        if version != VERSION:
            raise ValueError(f"pictures of version {version}; this reads version {VERSION}")
        return cls(kind, flags, epoch, frame, pts_us, data[HEADER_BYTES:])


def schema() -> dict[str, Any]:
    """JSON Schema of every message, and a description of binary ones."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "longlive-trt realtime video",
        "version": VERSION,
        "client": _FROM_CLIENT.json_schema(),
        "server": _FROM_SERVER.json_schema(mode="serialization"),
        "picture": {
            "byte_order": "big endian",
            "fields": [
                {"name": "version", "type": "u8", "value": VERSION},
                {"name": "kind", "type": "u8", "values": KINDS},
                {
                    "name": "flags",
                    "type": "u8",
                    "bits": {"key": KEY, "last_of_block": LAST_OF_BLOCK},
                },
                {"name": "epoch", "type": "u32"},
                {"name": "frame", "type": "u64"},
                {"name": "pts", "type": "u64", "unit": "microseconds"},
                {"name": "payload", "type": "bytes"},
            ],
        },
    }
