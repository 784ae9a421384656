"""The prompts that videos are made of: the shipped sets, or a file of the user's own."""

from dataclasses import dataclass, field
from pathlib import Path

from longlive_trt.configs import ModelConfig
from longlive_trt.errors import UsageError
from longlive_trt.quality.metrics.adherence import is_demo
from longlive_trt.reading.documents import JSON_BYTES, parse_json
from longlive_trt.reading.failures import InvalidFieldError, ReadingError, refusing
from longlive_trt.reading.files import read_text
from longlive_trt.reading.shapes import structured

FORMAT = 1
_DATA = Path(__file__).with_name("data")
_LONGEST = 4096


@dataclass(frozen=True)
class Asked:
    prompt: str
    shows: dict[str, str] = field(default_factory=dict)
    """What the prompt states, where that can be measured: values by attribute."""

    def __post_init__(self) -> None:
        if not self.prompt.strip() or len(self.prompt) > _LONGEST:
            raise InvalidFieldError("prompt", self.prompt, f"a text of 1 to {_LONGEST} characters")


@dataclass(frozen=True)
class PromptSet:
    format: int
    prompts: tuple[Asked, ...] = ()
    timelines: tuple[tuple[Asked, ...], ...] = ()
    """Prompts that follow each other in one video."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise InvalidFieldError("format", self.format, str(FORMAT))
        if not self.prompts and not self.timelines:
            raise ReadingError("it holds no prompts and no timelines")
        if not all(self.timelines):
            raise ReadingError("a timeline without a prompt")


def shipped_file(config: ModelConfig) -> Path:
    """The demo knows few words, and has a set of its own."""
    return _DATA / ("demo.json" if is_demo(config) else "general.json")


def read_prompts(path: Path) -> PromptSet:
    """Of JSON as the shipped sets are, or a prompt a line."""
    advice = "give JSON with prompts and timelines, or a text file with a prompt a line"
    with refusing(UsageError, path, advice):
        text = read_text(path, JSON_BYTES)
        if path.suffix.lower() == ".json":
            return structured(PromptSet, parse_json(text))
        lines = (line.strip() for line in text.splitlines())
        asked = tuple(Asked(line) for line in lines if line and not line.startswith("#"))
        return PromptSet(FORMAT, asked)
