"""Messages, their schema, and the header of pictures."""

import json
import struct
from typing import get_args

import pytest
from pydantic import ValidationError

from longlive_trt.serving import protocol
from longlive_trt.serving.protocol import (
    ClientMessage,
    Picture,
    ServerMessage,
    SessionInteraction,
    parse_client_message,
    parse_server_message,
    schema,
)
from tests.serving.conftest import Running


def types_of(union: object) -> set[str]:
    members = get_args(get_args(union)[0])
    return {get_args(member.model_fields["type"].annotation)[0] for member in members}


FROM_CLIENT = {
    "session.start", "session.interaction", "timeline.edit", "timeline.remove", "prompt.draft",
    "playback.shown", "session.pause", "session.resume", "session.decoder", "session.restart",
    "session.ping",
    "session.stop",
}  # fmt: skip
FROM_SERVER = {
    "video.start", "video.chunk_metadata", "session.queued", "session.interaction.queued",
    "session.interaction.applied", "video.cut", "timeline", "stats", "session.pong",
    "session.notice", "session.moving", "session.moved", "session.done", "error",
}  # fmt: skip


def test_the_messages_there_are() -> None:
    assert types_of(ClientMessage) == FROM_CLIENT
    assert types_of(ServerMessage) == FROM_SERVER


def test_the_schema_names_every_message(live: Running) -> None:
    served = live.ask("GET", "/v1/realtime/schema.json").json
    assert served == json.loads(json.dumps(schema()))
    for side, names in (("client", FROM_CLIENT), ("server", FROM_SERVER)):
        assert set(served[side]["discriminator"]["mapping"]) == names


def test_the_picture_header_is_as_documented() -> None:
    """version, kind, flags, epoch u32, frame u64, pts u64, payload."""
    picture = Picture(1, 3, 7, 1 << 40, 123_456_789_000, b"payload")
    data = picture.pack()
    assert data == struct.pack(">BBBIQQ", 1, 1, 3, 7, 1 << 40, 123_456_789_000) + b"payload"
    assert Picture.unpack(data) == picture
    sizes = {"u8": 1, "u32": 4, "u64": 8}
    fields = schema()["picture"]["fields"]
    assert sum(sizes.get(one["type"], 0) for one in fields) == protocol.HEADER_BYTES == 23


@pytest.mark.parametrize("data", [b"", b"\x01" * 22, b"\x02" + bytes(30)])
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"shorter than its header|version 2"):
        Picture.unpack(data)


def test_both_forms_of_an_interaction() -> None:
    short = parse_client_message('{"type": "session.interaction", "prompt": "a", "event_id": "e"}')
    # As vLLM-Omni's clients send it.
    long = parse_client_message(
        '{"type": "session.interaction", "interaction": {"event_id": "e", "event": '
        '{"prompt": "a"}, "transition_chunks": 2}}'
    )
    assert isinstance(short, SessionInteraction) and isinstance(long, SessionInteraction)
    assert (short.text, short.event) == (long.text, long.event) == ("a", "e")


def test_a_foreign_clients_start_is_understood() -> None:
    start = parse_client_message(
        '{"type": "session.start", "model": "any/model", "prompt": "p", "width": 640, '
        '"height": 384, "fps": 16, "num_frames": 99, "guidance_scale": 1.0, '
        '"extra_params": {"is_enable_stage2": true, "pyramid_num_stages": 3}}'
    )
    assert (start.format, start.num_frames, start.prompt) == ("m4s", 99, "p")


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "{}", '{"type": "no.such"}', '{"type": 5}',
        '{"type": "session.start", "format": "gif"}',
        '{"type": "session.start", "seed": -1}',
        '{"type": "session.start", "seed": 18446744073709551616}',
        '{"type": "session.start", "session": "../../etc/passwd\\u0000"}',
        '{"type": "session.interaction"}',
        '{"type": "session.interaction", "prompt": "a", "interaction": {"event": {"prompt": "b"}}}',
        '{"type": "playback.shown", "epoch": 1e400, "frame": 0}',
        '{"type": "playback.shown", "epoch": 0, "frame": -1}',
        '{"type": "timeline.edit", "cue": "x"}',
    ],
)  # fmt: skip
def test_what_is_no_message(text: str) -> None:
    with pytest.raises(ValidationError):
        parse_client_message(text)


def test_a_seed_may_be_as_large_as_seeds_are() -> None:
    text = '{"type": "session.start", "prompt": "", "seed": "18446744073709551615"}'
    assert parse_client_message(text).seed == 2**64 - 1


def test_what_the_server_says_is_read_back() -> None:
    cut = protocol.VideoCut(epoch=3, frame=21, reason="prompt")
    assert parse_server_message(cut.model_dump_json()) == cut
