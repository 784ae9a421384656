"""The attention as a TensorRT ahead-of-time plugin: PTX inside the engine, no library beside it.

``register()`` is called once in the process that builds an engine; running the engine needs neither
Python nor this package. The node is ``longlive::SinkWindowAttention``:

=============  =========================  ============================================
input          shape
=============  =========================  ============================================
q              [B, S, H, D]               fp16 or bf16, as all tensors but the last
k_new, v_new   [B, S, H, D]               this pass's own keys and values
k_cache,       [B, C, H, D]               a valid prefix, then anything
v_cache
cache_length   [1] int64                  how many cached tokens are valid
=============  =========================  ============================================

Attribute ``scale`` (float); output [B, S, H, D]. A second output, float32, is working memory.
"""

import hashlib
import struct
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from longlive_trt.architectures import HOPPER
from longlive_trt.contract import ATTENTION_PLUGIN
from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.hopper import LOG2_E
from longlive_trt.plugins.attention.variants import HEAD_DIMS, Variant, check_kind
from longlive_trt.plugins.cuda import driver
from longlive_trt.plugins.cuda.compilation import (
    Compiler,
    CompilerName,
    KernelSource,
    compile_kernel,
)

PLUGIN_ID = ATTENTION_PLUGIN
ARCHITECTURE = HOPPER.compiled
ENTRY = "attention_plugin_sm90"
DTYPES = ("bfloat16", "float16")

# Tile shapes that TensorRT times while it builds; tactics are positive integers.
TACTICS = {
    128: {
        1: Variant(warpgroups=3, tile_keys=80, stages=3),
        2: Variant(warpgroups=3, tile_keys=128, stages=2, pipelined=False),
        3: Variant(warpgroups=2, tile_keys=128, stages=2),
    },
    64: {
        1: Variant(warpgroups=3, tile_keys=128, stages=3),
        2: Variant(warpgroups=2, tile_keys=128, stages=3),
    },
}
_H100_MULTIPROCESSORS = 132


@dataclass(frozen=True)
class PluginKernel:
    """What an engine embeds: the kernel's name and PTX, and how it is launched."""

    name: str
    ptx: bytes
    threads: int
    shared_bytes: int


def workspace_floats(head_dim: int, blocks: int) -> int:
    """The size of the second output, which holds partial sums: enough for every tactic."""
    sizes = [variant.partial_bytes(head_dim, blocks) for variant in TACTICS[head_dim].values()]
    return max(sizes) // 4


def plugin_source(dtype: str, head_dim: int, scale: float, variant: Variant) -> KernelSource:
    """The scale is part of the code: kernel arguments can be pointers and integers only."""
    constants = dict(variant.constants(dtype, head_dim)) | {"LL_SCALE_BITS": scale_bits(scale)}
    return KernelSource(f"attention/{ENTRY}.cu", ENTRY, constants)


def scale_bits(scale: float) -> int:
    (bits,) = struct.unpack("<i", struct.pack("<f", scale * LOG2_E))
    return int(bits)


def plugin_kernel(
    dtype: str,
    head_dim: int,
    scale: float,
    tactic: int,
    *,
    compiler: CompilerName | Compiler = "auto",
) -> PluginKernel:
    if dtype not in DTYPES:
        raise PluginError(f"dtype is {dtype}: allowed is {' or '.join(DTYPES)}")
    check_kind(dtype, head_dim)
    tactics = TACTICS[head_dim]
    if tactic not in tactics:
        raise PluginError(f"tactic is {tactic}: allowed is {', '.join(map(str, tactics))}")
    variant = tactics[tactic]
    ptx = compile_kernel(
        plugin_source(dtype, head_dim, scale, variant), ARCHITECTURE, kind="ptx", compiler=compiler
    )
    return PluginKernel(ENTRY, ptx, variant.threads, variant.shared_bytes(dtype, head_dim))


def plugin_hash(dtype: str, head_dim: int, scale: float) -> str:
    """Identifies the code that an engine embeds, whichever tactic TensorRT takes."""
    digest = hashlib.sha256()
    for tactic in TACTICS[head_dim]:
        digest.update(plugin_kernel(dtype, head_dim, scale, tactic).ptx)
    return digest.hexdigest()


def register(*, multiprocessors: int | None = None) -> None:
    """Registers the plugin with TensorRT; a second call does nothing.

    ``multiprocessors`` is the number of thread blocks: those of the GPU, unless given.
    """
    plugin = import_plugin_module()
    if is_registered(plugin, PLUGIN_ID):
        return
    blocks = count_multiprocessors() if multiprocessors is None else multiprocessors
    _register(plugin, blocks)


def is_registered(plugin: Any, plugin_id: str) -> bool:
    namespace, name = plugin_id.split("::")
    return namespace in vars(plugin.op) and name in vars(getattr(plugin.op, namespace))


def import_plugin_module() -> Any:
    try:
        return import_module("tensorrt.plugin")
    except ImportError as error:
        raise PluginError(
            f"tensorrt.plugin cannot be imported ({error}): install TensorRT 10.7 or newer"
        ) from error


def count_multiprocessors() -> int:
    try:
        return driver.device_facts(0).multiprocessors
    except PluginError:
        return _H100_MULTIPROCESSORS  # any number is correct; this one suits the target


def _register(plugin: Any, blocks: int) -> None:
    # TensorRT reads these functions' signatures: names, order and annotations are the contract.
    desc: Any = plugin.TensorDesc
    float32: Any = import_module("tensorrt").float32

    @plugin.register(PLUGIN_ID)  # type: ignore[untyped-decorator]
    def describe(
        q: desc,
        k_new: desc,
        v_new: desc,
        k_cache: desc,
        v_cache: desc,
        cache_length: desc,
        scale: float,
    ) -> tuple[desc, desc]:
        # The head size is not known in every phase: reserve for the largest.
        size = workspace_floats(max(HEAD_DIMS), blocks)
        return q.like(), plugin.from_shape_expr((size,), dtype=float32)

    @plugin.autotune(PLUGIN_ID)  # type: ignore[untyped-decorator]
    def combinations(
        q: desc,
        k_new: desc,
        v_new: desc,
        k_cache: desc,
        v_cache: desc,
        cache_length: desc,
        scale: float,
        outputs: tuple[desc, desc],
    ) -> list[plugin.AutoTuneCombination]:
        halves = "BF16|FP16"
        types = ", ".join([halves] * 5 + ["INT64", halves, "FP32"])
        tactics = list(TACTICS[_constant_head_dim(q)])
        return [plugin.AutoTuneCombination(types, "LINEAR", tactics)]

    @plugin.aot_impl(PLUGIN_ID)  # type: ignore[untyped-decorator]
    def implement(
        q: desc,
        k_new: desc,
        v_new: desc,
        k_cache: desc,
        v_cache: desc,
        cache_length: desc,
        scale: float,
        outputs: tuple[desc, desc],
        tactic: int,
    ) -> tuple[str, bytes, plugin.KernelLaunchParams, plugin.SymIntExprs]:
        kernel = plugin_kernel(dtype_name(q.dtype), _constant_head_dim(q), scale, tactic)
        launch = plugin.KernelLaunchParams(
            grid_x=blocks, block_x=kernel.threads, shared_mem=kernel.shared_bytes
        )
        batch, tokens, heads, _ = q.shape_expr
        sizes = (batch, heads, tokens, k_cache.shape_expr[1])
        return kernel.name, kernel.ptx, launch, symbols(plugin, *sizes)


def symbols(plugin: Any, *sizes: Any) -> Any:
    """What a kernel is launched with, beside its tensors."""
    expressions = plugin.SymIntExprs(len(sizes))
    for index, size in enumerate(sizes):
        expressions[index] = plugin.SymInt32(size)
    return expressions


def _constant_head_dim(q: Any) -> int:
    extent = q.shape_expr[3]
    if not extent.is_constant or extent.constant_value() not in HEAD_DIMS:
        raise PluginError("q has a dynamic or unsupported head size: allowed is 64 or 128")
    return int(extent.constant_value())


def dtype_name(dtype: Any) -> str:
    name = {"BF16": "bfloat16", "HALF": "float16"}.get(getattr(dtype, "name", str(dtype)))
    if name is None:
        raise PluginError(f"q has dtype {dtype}: allowed is BF16 or HALF")
    return name
