"""One kernel of ``csrc/``: where its source is, what it takes, and its launch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from longlive_trt.plugins.cuda import driver
from longlive_trt.plugins.cuda.parameters import ParameterStruct


@dataclass(frozen=True)
class CudaKernel:
    """``file`` is below ``csrc/`` and named after the kernel; its struct is ``Params``."""

    file: str
    parameters: ParameterStruct

    @property
    def name(self) -> str:
        return PurePosixPath(self.file).stem

    def load(
        self, constants: Mapping[str, int], device: int, shared_bytes: int = 0
    ) -> driver.LoadedKernel:
        """Compiled with these constants, once for each set of them."""
        ordered = tuple(sorted(constants.items()))
        return driver.load_kernel(self.file, self.name, ordered, shared_bytes, device)

    def launch(
        self,
        values: Mapping[str, Any],
        *,
        grid: Sequence[int],
        threads: int,
        constants: Mapping[str, int],
        device: int,
        stream: int,
        shared_bytes: int = 0,
    ) -> None:
        """``values`` are the parameters by name."""
        loaded = self.load(constants, device, shared_bytes)
        loaded.launch(grid, threads, shared_bytes, stream, self.parameters.pack(**values))
