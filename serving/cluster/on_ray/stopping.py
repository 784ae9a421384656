"""How a replica learns that it is to stop.

Ray tells nobody: it waits until no request is left, and then ends the process. But it asks what
runs for its routing stats, and does not ask what stops.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from ray import serve

PERIOD_S = 1.0
_MISSED = 3.0


class Stopping:
    """``begin`` is called once Ray has stopped asking, ``resume`` if it asks again."""

    def __init__(
        self,
        deployment: str,
        app: str,
        begin: Callable[[], Awaitable[object]],
        resume: Callable[[], None] = lambda: None,
    ) -> None:
        self._deployment, self._app = deployment, app
        self._begin, self._resume = begin, resume
        self._asked_s: float | None = None
        self._has_begun = False
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def asked(self) -> None:
        self._asked_s = time.monotonic()
        if self._has_begun:
            self._has_begun = False
            self._resume()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S / 2)
            if self._has_begun or self._asked_s is None:
                continue
            silent_s = time.monotonic() - self._asked_s
            if silent_s > _MISSED * PERIOD_S and await asyncio.to_thread(
                self._is_somebody_stopping
            ):
                self._has_begun = True
                await self._begin()

    def _is_somebody_stopping(self) -> bool:
        """A controller that only is slow asks late too."""
        try:
            application = serve.status().applications.get(self._app)
        except Exception:  # whatever keeps the controller from answering, it will answer later
            return False
        if application is None or self._deployment not in application.deployments:
            return True
        states = application.deployments[self._deployment].replica_states
        return any(str(getattr(state, "value", state)) == "STOPPING" for state in states)
