"""Ray's request router for hosts: new sessions go where there is room, all else to its owner."""

import random
from dataclasses import dataclass
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from longlive_trt.serving.cluster.on_ray.view import FleetView, view_of


@dataclass(frozen=True)
class Route:
    """The first argument of every call to a host."""

    session: str | None = None
    """Goes to its owner."""
    host: str | None = None
    """Goes to this one."""
    key: str | None = None
    """Of a session that needs a slot."""
    bundle: str | None = None
    """That it ran with before."""


class FreeSlotRouter(RequestRouter):  # type: ignore[misc]
    """Ray asks every time which replicas come into question; here one does.

    Where the right host is gone the request goes to any other, which says that it is not the one:
    Ray itself would wait for a replica that does not come back.
    """

    def initialize_state(self, **_: Any) -> None:
        self._view: FleetView = view_of(self._deployment_id.app_name)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        stats = {replica.replica_id.unique_id: replica.routing_stats for replica in replicas}
        self._view.replicas(stats)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._view.lost(replica_id.unique_id)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        name = None
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
            name = self._wanted(pending_request.args[0])
        for replica in candidate_replicas:
            if replica.replica_id.unique_id == name:
                return [[replica]]
        return [[random.choice(candidate_replicas)]] if candidate_replicas else []  # noqa: S311

    def _wanted(self, route: Route) -> str | None:
        if route.host is not None:
            return route.host
        if route.session is not None:
            return self._view.owner(route.session)
        return None if route.key is None else self._view.choose(route.key, route.bundle)
