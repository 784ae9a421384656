"""Options that take a latent frame or a time."""

import click

from longlive_trt.console.printing import quoted
from longlive_trt.runtime.prompting.timeline import MOMENTS, Moment, parse_moment


def moment(text: str) -> Moment:
    found = parse_moment(text)
    if found is None:
        raise click.BadParameter(f"{quoted(text)} is neither; give {MOMENTS}")
    return found


def moment_list(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> tuple[Moment, ...] | None:
    """``40,7.5s,120``."""
    return None if value is None else tuple(map(moment, value.split(",")))
