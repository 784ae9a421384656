"""Times of kernels on a GPU: captured, replayed, and measured by events."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.harness import command

WARM_UP = 3

Launch = Callable[[int], object]
"""Queues work on the stream with this handle."""
Replay = Callable[[], object]


def machine() -> dict[str, Any]:
    """The beginning of a report."""
    return {
        "command": command(),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }


def capture(launches: Sequence[Launch]) -> torch.cuda.CUDAGraph:
    """One graph of all of them, which have run once before."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        _launch(launches, stream.cuda_stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        _launch(launches, stream.cuda_stream)
    return graph


def _launch(launches: Sequence[Launch], stream: int) -> None:
    for launch in launches:
        launch(stream)


def times_ms(replay: Replay, repeats: int) -> list[float]:
    """Sorted; each ends before the next begins."""
    return in_turns_ms({"": [replay]}, repeats, waits=True)[""]


def median_ms(replay: Replay, repeats: int) -> float:
    return median(times_ms(replay, repeats))


def median(times: Sequence[float]) -> float:
    return sorted(times)[len(times) // 2]


def in_turns_ms(
    replays: Mapping[str, Sequence[Replay]], repeats: int, *, waits: bool = False
) -> dict[str, list[float]]:
    """Sorted; every repeat replays one of each in turn, so that clocks and heat are shared."""
    pairs: dict[str, list[tuple[Any, Any]]] = {name: [] for name in replays}
    for repeat in range(WARM_UP + repeats):
        for name, rotation in replays.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            rotation[repeat % len(rotation)]()
            end.record()
            pairs[name].append((start, end))
            if waits:
                end.synchronize()
    torch.cuda.synchronize()
    return {
        name: sorted(start.elapsed_time(end) for start, end in each[WARM_UP:])
        for name, each in pairs.items()
    }


def copy_rate() -> float:
    """Bytes that a copy of a gigabyte reads and writes in a millisecond."""
    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / median_ms(lambda: target.copy_(source), 10)


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    difference = (result.double() - expected.double()).norm()
    return float(difference / expected.double().norm())
