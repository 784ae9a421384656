"""A training step on all workers; on a GPU two captured graphs with the exchange between."""

from collections.abc import Callable

import torch

from longlive_trt.demo.training.legs import Worker
from longlive_trt.demo.training.optimizer import MuonAdam

_WARM_UPS = 3


class Stepper:
    """``backward`` adds up gradients from buffers that it reads anew in every step."""

    def __init__(self, worker: Worker, optimizer: MuonAdam, backward: Callable[[], None]) -> None:
        self._worker, self._optimizer, self._backward = worker, optimizer, backward
        self._graphs: tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph] | None = None

    def capture(self) -> None:
        """Run a few steps for those that choose or compile kernels, undo them, keep the kernels."""
        if self._worker.device.type != "cuda":
            return
        held = self._optimizer.copied()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._gradients()
                self._optimizer.step()
        torch.cuda.current_stream().wait_stream(side)
        first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Other threads, such as NCCL's watchdog, may call CUDA meanwhile.
        with torch.cuda.graph(first, capture_error_mode="thread_local"):
            self._gradients()
        with torch.cuda.graph(second, capture_error_mode="thread_local"):
            self._optimizer.step()
        self._optimizer.restore(held)
        self._graphs = first, second

    def step(self) -> None:
        gradients = self._optimizer.flat.gradients
        if self._graphs is None:
            self._gradients()
            self._worker.averaged(gradients)
            self._optimizer.step()
            return
        self._graphs[0].replay()
        self._worker.averaged(gradients)
        self._graphs[1].replay()

    def _gradients(self) -> None:
        self._optimizer.flat.gradients.zero_()
        self._backward()
