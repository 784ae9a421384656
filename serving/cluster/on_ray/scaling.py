"""How many hosts Ray Serve keeps: by free slots, not by requests."""

from collections.abc import Mapping
from typing import Any

from longlive_trt.serving.cluster.placement import Scaling

SLOTS, RUNNING, WAITING = "longlive_slots", "longlive_running", "longlive_waiting"


class FreeSlots:
    """An autoscaling policy; Ray makes it with the values of :class:`Scaling`."""

    def __init__(self, least: int, most: int, spare: float, shrink_at: float) -> None:
        self._scaling = Scaling(least, most, spare, shrink_at)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        figures: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
        slots = figures.get(SLOTS, {})
        wanted = self._scaling.wanted(
            hosts=len(slots),
            slots=round(sum(slots.values())),
            running=round(sum(figures.get(RUNNING, {}).values())),
            # Gateways tell whichever host they ask.
            waiting=round(max(figures.get(WAITING, {}).values(), default=0)),
        )
        if not slots:
            return int(context.target_num_replicas), {}
        return wanted, {}
