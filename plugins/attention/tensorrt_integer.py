"""Attention in int8 as TensorRT ahead-of-time plugins: it, and the order of values that it reads.

``register()`` is called once in the process that builds an engine. The nodes are
``longlive::IntegerSinkWindowAttention``:

==================  ===============  ==================================================
input               shape
==================  ===============  ==================================================
q                   [B, S, H, 128]   int8, multiplied by the Hadamard matrix
k_new, k_cache      [B, S or C, ...] int8, this pass's own keys, and the cache's
v_new, v_cache      [B, H, 128, ...] float8 E4M3 as ``TransposedValues`` leaves them
cache_length        [1]              int64, how many cached tokens are valid
q_scale             [B, S, H, 1]     float32, of every row
k_scale, v_scale    [H]              float32
plain_q             [B, S, H, 128]   fp16 or bf16: the type of the result; it is not read
==================  ===============  ==================================================

with the attribute ``scale`` (float), the output [B, S, H, 128], and a second one, float32, that is
working memory; and ``longlive::TransposedValues``, from [B, S, H, 128] float8 E4M3 to
[B, H, 128, S rounded up to 16] (``value_layout``).
"""

import hashlib
from importlib import import_module
from typing import Any

from longlive_trt.contract import INTEGER_ATTENTION_PLUGIN, TRANSPOSED_VALUES_PLUGIN
from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.tensorrt_plugin import (
    ARCHITECTURE,
    DTYPES,
    ENTRY,
    PluginKernel,
    count_multiprocessors,
    dtype_name,
    import_plugin_module,
    is_registered,
    scale_bits,
    symbols,
)
from longlive_trt.plugins.attention.value_layout import VALUE_GROUP
from longlive_trt.plugins.attention.variants import NARROW_HEAD_DIM, Variant
from longlive_trt.plugins.cuda.compilation import KernelSource, compile_kernel

VALUES_ENTRY = "transposed_values_plugin"
HEAD_DIM = NARROW_HEAD_DIM

TACTICS = {
    1: Variant(warpgroups=2, tile_keys=128, stages=4, promoted_blocks=2),
    2: Variant(warpgroups=2, tile_keys=128, stages=3, promoted_blocks=2),
}
_VALUES_TACTIC = 1
_VALUE_TOKENS = 128
_VALUE_THREADS = 256


def workspace_floats(blocks: int) -> int:
    """The size of the second output, which holds partial sums: enough for every tactic."""
    return max(variant.partial_bytes(HEAD_DIM, blocks) for variant in TACTICS.values()) // 4


def attention_kernel(out_dtype: str, scale: float, tactic: int) -> PluginKernel:
    if out_dtype not in DTYPES:
        raise PluginError(f"the output is {out_dtype}: allowed is {' or '.join(DTYPES)}")
    if tactic not in TACTICS:
        raise PluginError(f"tactic is {tactic}: allowed is {', '.join(map(str, TACTICS))}")
    variant = TACTICS[tactic]
    constants = dict(variant.constants("int8", HEAD_DIM, out_dtype))
    constants["LL_SCALE_BITS"] = scale_bits(scale)
    source = KernelSource(f"attention/{ENTRY}.cu", ENTRY, constants)
    ptx = compile_kernel(source, ARCHITECTURE, kind="ptx")
    return PluginKernel(ENTRY, ptx, variant.threads, variant.shared_bytes("int8", HEAD_DIM))


def values_kernel() -> PluginKernel:
    constants = {"LL_BYTES": 1, "LL_HEAD_DIM": HEAD_DIM, "LL_PLUGIN": 1}
    source = KernelSource("rows/transposed_values.cu", VALUES_ENTRY, constants)
    ptx = compile_kernel(source, ARCHITECTURE, kind="ptx")
    return PluginKernel(VALUES_ENTRY, ptx, _VALUE_THREADS, 0)


def plugin_hashes(out_dtype: str, scale: float) -> dict[str, str]:
    """What identifies the code that an engine embeds, whichever tactic TensorRT takes."""
    digest = hashlib.sha256()
    for tactic in TACTICS:
        digest.update(attention_kernel(out_dtype, scale, tactic).ptx)
    return {
        INTEGER_ATTENTION_PLUGIN: digest.hexdigest(),
        TRANSPOSED_VALUES_PLUGIN: hashlib.sha256(values_kernel().ptx).hexdigest(),
    }


def register(*, multiprocessors: int | None = None) -> None:
    """Registers both plugins with TensorRT; a second call does nothing.

    ``multiprocessors`` is the number of attention's thread blocks: those of the GPU, unless given.
    """
    plugin = import_plugin_module()
    if not is_registered(plugin, INTEGER_ATTENTION_PLUGIN):
        _register_attention(
            plugin, count_multiprocessors() if multiprocessors is None else multiprocessors
        )
    if not is_registered(plugin, TRANSPOSED_VALUES_PLUGIN):
        _register_values(plugin)


def _register_attention(plugin: Any, blocks: int) -> None:
    # TensorRT reads these functions' signatures: names, order and annotations are the contract.
    desc: Any = plugin.TensorDesc
    float32: Any = import_module("tensorrt").float32

    @plugin.register(INTEGER_ATTENTION_PLUGIN)  # type: ignore[untyped-decorator]
    def describe(
        q: desc,
        k_new: desc,
        v_new: desc,
        k_cache: desc,
        v_cache: desc,
        cache_length: desc,
        q_scale: desc,
        k_scale: desc,
        v_scale: desc,
        plain_q: desc,
        scale: float,
    ) -> tuple[desc, desc]:
        workspace = plugin.from_shape_expr((workspace_floats(blocks),), dtype=float32)
        return plain_q.like(), workspace

    @plugin.autotune(INTEGER_ATTENTION_PLUGIN)  # type: ignore[untyped-decorator]
    def combinations(
        q: desc,
        k_new: desc,
        v_new: desc,
        k_cache: desc,
        v_cache: desc,
        cache_length: desc,
        q_scale: desc,
        k_scale: desc,
        v_scale: desc,
        plain_q: desc,
        scale: float,
        outputs: tuple[desc, desc],
    ) -> list[plugin.AutoTuneCombination]:
        halves = "BF16|FP16"
        pieces = ["INT8", "FP8"] * 2
        types = ["INT8", *pieces, "INT64", *["FP32"] * 3, halves, halves, "FP32"]
        return [plugin.AutoTuneCombination(", ".join(types), "LINEAR", list(TACTICS))]

    @plugin.aot_impl(INTEGER_ATTENTION_PLUGIN)  # type: ignore[untyped-decorator]
    def implement(
        q: desc,
        k_new: desc,
        v_new: desc,
        k_cache: desc,
        v_cache: desc,
        cache_length: desc,
        q_scale: desc,
        k_scale: desc,
        v_scale: desc,
        plain_q: desc,
        scale: float,
        outputs: tuple[desc, desc],
        tactic: int,
    ) -> tuple[str, bytes, plugin.KernelLaunchParams, plugin.SymIntExprs]:
        _require_head_dim(q, "q")
        kernel = attention_kernel(dtype_name(plain_q.dtype), scale, tactic)
        launch = plugin.KernelLaunchParams(
            grid_x=blocks, block_x=kernel.threads, shared_mem=kernel.shared_bytes
        )
        batch, tokens, heads, _ = q.shape_expr
        pitches = (values.shape_expr[3] for values in (v_new, v_cache))
        sizes = (batch, heads, tokens, k_cache.shape_expr[1], *pitches)
        return kernel.name, kernel.ptx, launch, symbols(plugin, *sizes)


def _register_values(plugin: Any) -> None:
    desc: Any = plugin.TensorDesc

    @plugin.register(TRANSPOSED_VALUES_PLUGIN)  # type: ignore[untyped-decorator]
    def describe(v: desc) -> desc:
        batch, tokens, heads, head_dim = v.shape_expr
        pitch = (tokens + (VALUE_GROUP - 1)) // VALUE_GROUP * VALUE_GROUP
        return plugin.from_shape_expr((batch, heads, head_dim, pitch), dtype=v.dtype)

    @plugin.autotune(TRANSPOSED_VALUES_PLUGIN)  # type: ignore[untyped-decorator]
    def combinations(v: desc, outputs: tuple[desc]) -> list[plugin.AutoTuneCombination]:
        return [plugin.AutoTuneCombination("FP8, FP8", "LINEAR", [_VALUES_TACTIC])]

    @plugin.aot_impl(TRANSPOSED_VALUES_PLUGIN)  # type: ignore[untyped-decorator]
    def implement(
        v: desc, outputs: tuple[desc], tactic: int
    ) -> tuple[str, bytes, plugin.KernelLaunchParams, plugin.SymIntExprs]:
        _require_head_dim(v, "v")
        kernel = values_kernel()
        batch, tokens, heads, _ = v.shape_expr
        # One more than a whole number of tiles needs: no grid is empty.
        launch = plugin.KernelLaunchParams(
            grid_x=tokens // _VALUE_TOKENS + 1, grid_y=batch * heads, block_x=kernel.threads
        )
        sizes = (heads, tokens, outputs[0].shape_expr[3])
        return kernel.name, kernel.ptx, launch, symbols(plugin, *sizes)


def _require_head_dim(tensor: Any, name: str) -> None:
    extent = tensor.shape_expr[3]
    if not extent.is_constant or extent.constant_value() != HEAD_DIM:
        raise PluginError(f"{name} has a dynamic or unsupported head size: allowed is {HEAD_DIM}")
