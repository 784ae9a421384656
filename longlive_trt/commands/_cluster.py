"""The options of ``serve`` that are about more than one machine."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from longlive_trt.errors import UsageError

_MOST = 10_000


@dataclass(frozen=True)
class ClusterChoice:
    """What was given; None is what was not."""

    kind: str | None
    hosts: int | None
    most_hosts: int | None
    gateways: int | None
    store: str | None
    save_every_s: float | None
    keep_days: float | None
    gpus_per_host: float | None

    def __post_init__(self) -> None:
        alone = {
            "--hosts": self.hosts,
            "--most-hosts": self.most_hosts,
            "--gateways": self.gateways,
            "--store": self.store,
            "--save-every": self.save_every_s,
            "--keep-days": self.keep_days,
            "--gpus-per-host": self.gpus_per_host,
        }
        lost = [name for name, value in alone.items() if value is not None]
        if self.kind is None and lost:
            raise UsageError(f"{lost[0]} is about a fleet: add --cluster ray")
        if self.kind is not None and self.store is None:
            raise UsageError(
                "--cluster: give --store, where states of sessions are kept that change hosts: a "
                "folder that all machines share, s3://... or gs://..."
            )
        if (self.most_hosts or _MOST) < (self.hosts or 1):
            raise UsageError(f"--most-hosts {self.most_hosts} is less than --hosts {self.hosts}")


_OPTIONS = (
    click.option(
        "--cluster", "kind", type=click.Choice(["ray"]), help="Serve from many hosts, on Ray Serve."
    ),
    click.option(
        "--hosts", type=click.IntRange(1, _MOST), help="Hosts at least.  [--cluster; default: 1]"
    ),
    click.option(
        "--most-hosts",
        type=click.IntRange(1, _MOST),
        help="Hosts at most: added and removed by free slots.  [--cluster; default: --hosts]",
    ),
    click.option(
        "--gateways",
        type=click.IntRange(1, 1000),
        help="Processes that sockets end at.  [--cluster; default: 1]",
    ),
    click.option("--store", metavar="URL", help="Owners and states of sessions.  [--cluster]"),
    click.option(
        "--save-every",
        "save_every_s",
        type=click.FloatRange(1, 86_400),
        metavar="SECONDS",
        help="How much of a video a lost machine may cost.  [--cluster; default: 30]",
    ),
    click.option(
        "--keep-days",
        type=click.FloatRange(2, 3650),
        metavar="DAYS",
        help="How long the store keeps what nobody comes back to.  [--cluster; default: 7]",
    ),
    click.option(
        "--gpus-per-host",
        type=click.FloatRange(0, 8),
        help="GPUs that Ray gives each host.  [--cluster; default: 1 with --device cuda, else 0]",
    ),
)


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command gets them as ``cluster``."""

    @functools.wraps(command)
    def gathered(*arguments: Any, **values: Any) -> Any:
        names = ClusterChoice.__dataclass_fields__
        choice = ClusterChoice(**{name: values.pop(name) for name in names})
        return command(*arguments, cluster=choice, **values)

    wrapped: Callable[..., Any] = gathered
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped
