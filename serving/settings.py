"""What a server allows and how it paces, in one place."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may ask of a server."""

    message_bytes: int = 16 << 10
    messages_per_second: float = 10
    prompts_per_second: float = 2
    prompt_characters: int = 4000
    sockets: int = 256
    start_timeout_s: float = 10
    waiting: int = 100
    viewers_per_session: int = 16
    cues: int = 500
    states: int = 32
    states_bytes: int = 20 << 30
    recording_bytes: int = 4 << 30
    """Hours of it: of what is longer, the beginning goes."""
    latents_bytes: int = 4 << 30
    """The same, where another decoder may make the pictures: 1.2 MB a block at 480x832."""
    videos: int = 64
    video_seconds: float = 600
    token_age_s: float = 24 * 3600
    """A session's token ends with the session, and after this at the latest."""


@dataclass(frozen=True, kw_only=True)
class Pacing:
    lead_blocks: int = 2
    """So many blocks are made ahead of the one on screen."""
    margin_s: float = 0.12
    """What will be on screen before a cut can reach the viewer counts as seen."""
    quiet_s: float = 0.25
    """A draft is taken up after so long without keys."""
    speculate: bool = True


@dataclass(frozen=True, kw_only=True)
class Settings:
    limits: Limits = field(default_factory=Limits)
    pacing: Pacing = field(default_factory=Pacing)
    sessions: int | None = None
    """At most so many at a time; None leaves it to memory and speed."""
    token: str | None = None
    """What callers must show; None on loopback only."""
    host: str = "127.0.0.1"
    port: int = 8400
    allowed_hosts: tuple[str, ...] = ()
    """Names that this server is reached by, beside its own address: those of proxies before it."""
    root_path: str = ""
    """The prefix under which a proxy publishes this server."""
    data: Path | None = None
    """Where states and recordings are kept; None is a folder of this run's own."""
    return_s: float = 60
    """A session whose last viewer left waits so long."""
    idle_s: float = 15 * 60
    """A session that nobody steers ends after so long."""
    kept_s: float = 15 * 60
    """So long can the recording of a session be fetched that is over."""
    remake_patience_s: float = 30
    """A recording by another decoder is refused where running sessions leave no time so long."""
    jpeg_quality: int = 80
    log_prompts: bool = False

    @property
    def is_loopback(self) -> bool:
        return self.host in ("localhost", "::1") or self.host.startswith("127.")
