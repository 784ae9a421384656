"""The videos of an evaluation: which prompts, how long, and what of them is judged."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from longlive_trt.configs import ModelConfig
from longlive_trt.errors import UsageError
from longlive_trt.quality.prompts import Asked, PromptSet
from longlive_trt.reading.ranges import Range

COUNT = Range(0, 10_000)
SECONDS = Range(0, 86_400, above=True)

PROMPT, TIMELINE, LONG = "prompt", "timeline", "long"
SHOWN, CHANGED, KEPT = ("all", "first"), ("changed",), ("kept",)
"""Spans, by what their adherence counts for."""
ENDS = ("beginning", "end")
"""Those of a long video."""
TURNING_BLOCKS = 2
"""After a switch, within which one scene may still turn into the next."""
END_S = 10.0
"""Of a long video: what its beginning and its end are."""
_SEEDS = {PROMPT: 0, TIMELINE: 100_000, LONG: 200_000}
_LEAST_PARTS = 3


@dataclass(frozen=True)
class Lengths:
    """How many videos of each kind, and how long they are."""

    prompts: int | None = None
    """None is all of the set."""
    timelines: int | None = None
    seconds: float = 6.6
    """Of a prompt's video; a prompt of a timeline has two thirds of it."""
    long: int = 1
    long_seconds: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            *((name, COUNT) for name in ("prompts", "timelines", "long")),
            *((name, SECONDS) for name in ("seconds", "long_seconds")),
        ):
            allowed.require("--" + name.replace("_", "-"), getattr(self, name))


@dataclass(frozen=True)
class Span:
    """Pictures that are judged together."""

    name: str
    begin: int
    end: int
    shows: Mapping[str, str]


@dataclass(frozen=True)
class Case:
    kind: str
    number: int
    texts: Mapping[int, str]
    """By the latent frame from which each is wanted."""
    blocks: int
    seed: int
    spans: tuple[Span, ...]

    @property
    def name(self) -> str:
        return f"{self.kind} {self.number + 1}"

    def prompt_of(self, latent_frame: int) -> str:
        return self.texts[max(frame for frame in self.texts if frame <= latent_frame)]

    @property
    def scenes(self) -> list[Span]:
        """The stretches of one scene each, with all that is stated of it."""
        shows: dict[tuple[int, int], dict[str, str]] = {}
        for span in self.spans:
            if span.name in (*SHOWN, *CHANGED, *KEPT, *ENDS):
                shows.setdefault((span.begin, span.end), {}).update(span.shows)
        return [Span("scene", begin, end, stated) for (begin, end), stated in shows.items()]


def cases(asked: PromptSet, config: ModelConfig, lengths: Lengths) -> list[Case]:
    prompts = asked.prompts[: lengths.prompts]
    timelines = asked.timelines[: lengths.timelines]
    every = [
        *(_prompt(n, one, config, lengths) for n, one in enumerate(prompts)),
        *(_timeline(n, parts, config, lengths) for n, parts in enumerate(timelines)),
        *_long(asked, config, lengths),
    ]
    if not every:
        raise UsageError("no videos to make: ask for prompts, timelines or long videos")
    return every


def _prompt(number: int, asked: Asked, config: ModelConfig, lengths: Lengths) -> Case:
    blocks = _blocks(lengths.seconds, config)
    whole = Span("all", 0, _pictures(blocks, config), asked.shows)
    return Case(PROMPT, number, {0: asked.prompt}, blocks, _seed(PROMPT, number, lengths), (whole,))


def _timeline(number: int, parts: Sequence[Asked], config: ModelConfig, lengths: Lengths) -> Case:
    each = max(_LEAST_PARTS, _blocks(lengths.seconds * 2 / 3, config))
    frames = config.rollout.frames_per_block
    spans = tuple(_spans_of_parts(parts, each, config))
    texts = {n * each * frames: part.prompt for n, part in enumerate(parts)}
    seed = _seed(TIMELINE, number, lengths)
    return Case(TIMELINE, number, texts, each * len(parts), seed, spans)


def _spans_of_parts(parts: Sequence[Asked], each: int, config: ModelConfig) -> Iterator[Span]:
    """What changes at a switch, and what stays, is judged once both had time to turn."""
    before: Mapping[str, str] = {}
    for number, part in enumerate(parts):
        turning = TURNING_BLOCKS if number else 0
        begin = _pictures(number * each + turning, config)
        end = _pictures((number + 1) * each, config)
        changed = {name: v for name, v in part.shows.items() if before.get(name) != v}
        kept = {name: v for name, v in part.shows.items() if before.get(name) == v}
        if number:
            yield Span("changed", begin, end, changed)
            yield Span("kept", begin, end, kept)
        else:
            yield Span("first", begin, end, part.shows)
        before = part.shows


def _long(asked: PromptSet, config: ModelConfig, lengths: Lengths) -> Iterator[Case]:
    prompts = asked.prompts or tuple(parts[0] for parts in asked.timelines)
    blocks, end = _blocks(lengths.long_seconds, config), round(END_S * config.fps)
    pictures = _pictures(blocks, config)
    for number in range(lengths.long):
        one = prompts[number % len(prompts)]
        spans = (
            Span("beginning", 0, min(end, pictures), one.shows),
            Span("end", max(0, pictures - end), pictures, one.shows),
        )
        yield Case(LONG, number, {0: one.prompt}, blocks, _seed(LONG, number, lengths), spans)


def _seed(kind: str, number: int, lengths: Lengths) -> int:
    return lengths.seed + _SEEDS[kind] + number


def _blocks(seconds: float, config: ModelConfig) -> int:
    """Whole blocks, as near to the length as they come; a video's first picture stands alone."""
    factor = config.temporal_factor
    pictures = seconds * config.fps + factor - 1
    return max(1, round(pictures / (factor * config.rollout.frames_per_block)))


def _pictures(blocks: int, config: ModelConfig) -> int:
    return config.video_frames(blocks * config.rollout.frames_per_block)
