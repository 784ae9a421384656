"""What a video file says about itself to players: title, prompts and seed."""

from collections.abc import Callable, Mapping, Sequence

from longlive_trt import __version__
from longlive_trt.console.printing import cut, escaped

Tags = Mapping[str, str]
MakeTags = Callable[[], Tags]

_LONGEST_TITLE = 120


def no_tags() -> Tags:
    return {}


def video_tags(prompts: Sequence[tuple[float, str]], *, model: str, seed: int | None) -> Tags:
    """``prompts`` by the second of the video from which each is shown."""
    made = f"longlive-trt {__version__}, {model}"
    tags = {"comment": made if seed is None else f"seed {seed}; {made}"}
    if prompts:
        shown = [(seconds, escaped(prompt)) for seconds, prompt in prompts]
        tags["title"] = cut(shown[0][1], _LONGEST_TITLE)
        tags["description"] = "\n".join(f"{seconds:.1f} s: {prompt}" for seconds, prompt in shown)
    return tags
