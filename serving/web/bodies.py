"""What HTTP requests and answers look like."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from longlive_trt.serving.protocol import Cue, CueAt, Name, Number, Prompt, Seed, TakesEffect


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ErrorDetails(BaseModel):
    model_config = ConfigDict(extra="allow")
    code: str
    message: str


class ErrorBody(Body):
    error: ErrorDetails


class NewSession(Body):
    prompt: Prompt = ""
    seed: Seed | None = None
    switch: Name = "exact"
    timeline: Annotated[list[CueAt], Field(max_length=500)] = []
    resume: Name | None = None
    decoder: Name | None = None
    ticket: Name | None = None
    """Of an answer 503: keeps the place in the queue."""


class SessionCreated(Body):
    id: str
    token: str
    ws_url: str
    seed: str
    switch: str


class SessionFacts(Body):
    id: str
    status: Literal["running", "ended"]
    seed: str
    switch: str
    fps: float
    width: int
    height: int
    shown: int
    made: int
    viewers: int
    epoch: int
    cues: list[Cue]
    state: str | None = None
    """Where the session ended and can be resumed."""
    message: str | None = None


class NewInteraction(Body):
    prompt: Prompt
    frame: Number | None = None
    event_id: Name | None = None


class InteractionTaken(Body):
    cue: int
    takes_effect: TakesEffect
    speculated: bool


class StateSaved(Body):
    state_id: str


class RecipePrompt(Body):
    frame: int
    prompt: str


class Recipe(Body):
    format: int
    seed: int
    switch: str
    bundle_key: str
    frames: int
    prompts: list[RecipePrompt]
    command: str


class Model(Body):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "longlive-trt"
    width: int
    height: int
    fps: float
    temporal_factor: int
    bundle_key: str
    suggestions: list[str]
    decoders: list[str]
    slots: int
    needs_token: bool


class Models(Body):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(Body):
    status: Literal["ok"] = "ok"
    version: str


class Readiness(Body):
    status: Literal["ready", "loading", "draining", "failed"]
    running: int = 0
    waiting: int = 0
    slots: int = 0
    message: str | None = None


class NewVideo(Body):
    """As OpenAI's video API has it; the size is the model's."""

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=4000)]
    model: Name | None = None
    seconds: (
        Annotated[float, Field(gt=0, le=600)]
        | Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}(\.[0-9]{1,3})?$")]
    ) = 4.0
    size: Annotated[str, StringConstraints(max_length=20)] | None = None
    seed: Seed | None = None
    switch: Name = "exact"
    timeline: Annotated[list[CueAt], Field(max_length=500)] = []


class VideoError(Body):
    code: str
    message: str


VideoStatus = Literal["queued", "in_progress", "completed", "failed"]


class Video(Body):
    id: str
    object: Literal["video"] = "video"
    model: str
    status: VideoStatus
    progress: int
    created_at: int
    completed_at: int | None = None
    seconds: str
    size: str
    seed: str
    prompt: str
    error: VideoError | None = None
    note: str | None = None
    """What a caller may want to know of how it was made."""


class Videos(Body):
    object: Literal["list"] = "list"
    data: list[Video]


class VideoDeleted(Body):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class Drained(Body):
    status: Literal["drained"] = "drained"
    saved: list[str]
