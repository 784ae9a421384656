"""Where the kernels of one session run, and the device memory that they share there."""

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

from longlive_trt.basics import Closing
from longlive_trt.plugins.cuda.streams import Gpu, Stream


class _Closable(Protocol):
    def close(self) -> None: ...


Shared = TypeVar("Shared", bound=_Closable)


class Placement(Closing):
    """A stream, and what kernels that are launched on it share: workspaces, above all.

    Kernels of one stream run one after another, so one workspace serves all of a kind.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._shared: dict[Hashable, Any] = {}

    @property
    def gpu(self) -> Gpu:
        return self.stream.gpu

    @property
    def device(self) -> int:
        return self.gpu.ordinal

    def shared(self, key: Hashable, make: Callable[[], Shared]) -> Shared:
        """What ``make`` gave at the first call, which cannot be under capture."""
        if key not in self._shared:
            self._shared[key] = make()
        shared: Shared = self._shared[key]
        return shared

    def close(self) -> None:
        for shared in self._shared.values():
            shared.close()
        self._shared.clear()
