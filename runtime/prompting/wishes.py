"""Prompts that were asked for, in whatever form, as cues."""

from collections.abc import Mapping, Sequence

from longlive_trt.console.printing import quoted
from longlive_trt.errors import UsageError
from longlive_trt.runtime.prompting.timeline import (
    ByMoment,
    Clock,
    Cue,
    Seconds,
    Wish,
    parse_moment,
)


def asked_cues(prompt: str | ByMoment | Sequence[Cue | Wish], name: str, clock: Clock) -> list[Cue]:
    """Prompts as a caller gives them; ``name`` is what a message calls them."""
    if isinstance(prompt, str):
        return [Cue(0, prompt, name)]
    if isinstance(prompt, Mapping):
        wishes = [_wish(at, text, f"{name} at {at}") for at, text in prompt.items()]
        known = [clock.cue(wish) for wish in wishes if wish is not None]
        if len(known) == len(prompt):
            return sorted(known, key=lambda cue: cue.frame)
    elif isinstance(prompt, Sequence):
        placed = [clock.cue(one) if isinstance(one, Wish) else one for one in prompt]
        listed = [one for one in placed if isinstance(one, Cue)]
        if len(listed) == len(prompt):
            return listed
    raise UsageError(
        f"{name} is {quoted(prompt)}; give a text, or texts by the latent frame, or the time (as "
        "'7.5s'), from which each is wanted"
    )


def _wish(at: object, prompt: object, where: str) -> Wish | None:
    moment = parse_moment(at) if isinstance(at, str) else at
    is_moment = type(moment) is int or isinstance(moment, Seconds)
    return Wish(moment, prompt, where) if is_moment and isinstance(prompt, str) else None  # type: ignore[arg-type]
