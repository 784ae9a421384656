"""The two deployments: gateways, and hosts behind them."""

import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from longlive_trt.errors import LongLiveError
from longlive_trt.serving.cluster.calls import (
    Head,
    HostLostError,
    Item,
    Joining,
    Opened,
    Opening,
    Refused,
    Request,
)
from longlive_trt.serving.cluster.gateway import Gateway
from longlive_trt.serving.cluster.host import Host
from longlive_trt.serving.cluster.on_ray.hosts import RayHosts, until_found
from longlive_trt.serving.cluster.on_ray.router import FreeSlotRouter, Route
from longlive_trt.serving.cluster.on_ray.scaling import RUNNING, SLOTS, WAITING, FreeSlots
from longlive_trt.serving.cluster.on_ray.stopping import PERIOD_S, Stopping
from longlive_trt.serving.cluster.on_ray.view import view_of
from longlive_trt.serving.cluster.placement import facts_of
from longlive_trt.serving.cluster.settings import FleetSettings
from longlive_trt.serving.cluster.store.registry import Registry
from longlive_trt.serving.cluster.web import make_gateway_app
from longlive_trt.serving.engine import LiveModel
from longlive_trt.serving.operation import logs
from longlive_trt.serving.settings import Settings
from longlive_trt.serving.web.security import Guard

logger = logging.getLogger(__name__)

APP, GATEWAY, HOST = "longlive", "Gateway", "Host"
REFUSAL = "longlive-trt cannot serve here: "
"""Begins the one line that matters of what Ray says when a host cannot start."""
_ONGOING = 10_000
"""Sessions are limited by slots: Ray is not to hold calls back."""
_LOOP_S = 0.2
_MEASURE_S, _GROW_S, _SHRINK_S = 2.0, 5.0, 300.0
"""A machine takes longer to start than to be missed, and people come back."""


class HostReplica:
    """One GPU's, or one CPU's."""

    async def __init__(  # type: ignore[misc]
        self, settings: Settings, fleet: FleetSettings, load: Callable[[], LiveModel]
    ) -> None:
        logs.set_up(prompts=settings.log_prompts)
        context = serve.get_replica_context()
        node = f"{ray.util.get_node_ip_address()}:{os.getpid()}"
        self._host = Host(context.replica_tag, settings, fleet, load, node)
        try:
            await self._host.start()
        except (LongLiveError, OSError) as error:
            raise RuntimeError(f"{REFUSAL}{error}") from None
        self._stopping = Stopping(
            HOST, context.app_name, begin=self._host.drain, resume=self._host.admit
        )

    async def ping(self, route: Route) -> str:
        return self._host.name

    async def open(self, route: Route, opening: Opening) -> Opened | Refused:
        return await self._host.open(opening)

    async def watch(self, route: Route, joining: Joining) -> AsyncIterator[Sequence[Item]]:
        async for items in self._host.watch(joining):
            yield items

    async def tell(self, route: Route, viewer: str, items: Sequence[Item]) -> bool:
        return self._host.tell(viewer, items)

    async def ask(self, route: Route, request: Request) -> AsyncIterator[Head | bytes]:
        if route.session is not None and not self._host.has(route.session):
            raise HostLostError("no such session")
        async for part in self._host.ask(request):
            yield part

    async def drain(self, route: Route, undo: bool) -> list[str]:
        if route.host != self._host.name:
            raise HostLostError("that host does not run any more")
        if undo:
            self._host.admit()
            return []
        return await self._host.drain()

    def record_routing_stats(self) -> dict[str, object]:
        self._stopping.asked()
        return facts_of(self._host.view())

    def record_autoscaling_stats(self) -> dict[str, float]:
        view = self._host.view()
        return {SLOTS: view.slots, RUNNING: view.running, WAITING: self._host.waiting}

    async def __del__(self) -> None:
        await self._host.stop()


class GatewayReplica:
    """CPU only: sockets, tokens, the page."""

    async def __init__(  # type: ignore[misc]
        self, hosts: Any, settings: Settings, fleet: FleetSettings
    ) -> None:
        logs.set_up(prompts=settings.log_prompts)
        context = serve.get_replica_context()
        self._hosts = RayHosts(hosts, view_of(context.app_name))
        self._gateway = Gateway(
            context.replica_tag, settings, fleet, self._hosts, Registry(fleet.store)
        )
        self._stopping = Stopping(
            GATEWAY, context.app_name, begin=self._gateway.close, resume=self._gateway.reopen_doors
        )

    def __serve_build_asgi_app__(self) -> Guard:
        return make_gateway_app(self._gateway, lambda: until_found(self._hosts))

    def record_routing_stats(self) -> dict[str, object]:
        self._stopping.asked()
        return {}


def make_application(
    settings: Settings, fleet: FleetSettings, load: Callable[[], LiveModel]
) -> Application:
    """``load`` runs on every host."""
    scaling = fleet.scaling
    policy = AutoscalingPolicy(
        policy_function=FreeSlots,
        policy_kwargs={
            "least": scaling.least,
            "most": scaling.most,
            "spare": scaling.spare,
            "shrink_at": scaling.shrink_at,
        },
    )
    shared: dict[str, Any] = {
        "max_ongoing_requests": _ONGOING,
        "graceful_shutdown_timeout_s": fleet.grace_s,
        "graceful_shutdown_wait_loop_s": _LOOP_S,
        # A line for every command of every viewer would be most of a host's work.
        "logging_config": LoggingConfig(enable_access_log=False),
    }
    autoscaled: dict[str, Any] = {"num_replicas": scaling.least}
    if scaling.most > scaling.least:
        autoscaled = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=scaling.least,
                initial_replicas=scaling.least,
                max_replicas=scaling.most,
                upscale_delay_s=_GROW_S,
                downscale_delay_s=_SHRINK_S,
                metrics_interval_s=_MEASURE_S,
                look_back_period_s=2 * _MEASURE_S,
                policy=policy,
            )
        }
    host = serve.deployment(
        HostReplica,
        name=HOST,
        ray_actor_options={"num_cpus": fleet.cpus_per_host, "num_gpus": fleet.gpus_per_host},
        request_router_config=RequestRouterConfig(
            request_router_class=FreeSlotRouter,
            request_routing_stats_period_s=PERIOD_S,
        ),
        **autoscaled,
        **shared,
    )
    gateway = serve.deployment(
        serve.ingress()(GatewayReplica),
        name=GATEWAY,
        num_replicas=fleet.gateways,
        ray_actor_options={"num_cpus": 1},
        request_router_config=RequestRouterConfig(request_routing_stats_period_s=PERIOD_S),
        **shared,
    )
    application: Application = gateway.bind(host.bind(settings, fleet, load), settings, fleet)
    return application
