"""Kernels' sources, as a compiler takes them."""

from collections.abc import Mapping

import pytest

from longlive_trt.errors import PluginError
from longlive_trt.plugins.cuda.compilation import CompilerName, KernelSource, choose_compiler


def require_compiled(
    entry: str, constants: Mapping[str, int], compiler: CompilerName, folder: str = "vae"
) -> None:
    """For Hopper; a compiler that is not there has nothing to say."""
    try:
        chosen = choose_compiler(compiler)
    except PluginError as missing:
        pytest.skip(str(missing))
    source = KernelSource(f"{folder}/{entry}.cu", entry, constants)
    assert chosen.compile(source, "sm_90a", "cubin")
