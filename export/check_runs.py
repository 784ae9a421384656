"""A graph run by ONNX Runtime for its check, on a GPU where that can and on the CPU."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor

from longlive_trt.dtypes import BY_ONNXRUNTIME, FLOAT8
from longlive_trt.export.torch_types import QUANTIZED_TYPES, torch_type
from longlive_trt.export.tracing import GraphSpec
from longlive_trt.precision import PRECISIONS, Precision, retype

logger = logging.getLogger(__name__)

Tensors = dict[str, Tensor]

_CPU = "CPUExecutionProvider"
_GPU = "CUDAExecutionProvider"
_GPU_OPTIONS = {
    "use_tf32": "0",
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
}


def run_graph(
    spec: GraphSpec, folder: Path, precision: Precision, inputs: Tensors, device: torch.device
) -> Tensors | None:
    """Its outputs, on the host; None where a GPU cannot run it."""
    providers = _providers(device)
    if providers is None:
        return None
    path = folder / f"{spec.name}.onnx"
    runnable = _runnable(spec, precision)
    if runnable is not precision:
        model = ir.load(path)
        retype(model, runnable)
        path = folder / f".{spec.name}.{runnable.name}.onnx"
        ir.save(model, path, external_data=f"{path.name}.data")
    try:
        return _outputs(path, inputs, providers)
    except Exception as error:  # onnxruntime's errors have no common base
        if device.type == "cpu":
            raise
        logger.debug("graph %s is checked on the CPU: %s", spec.name, error)
        return None
    finally:
        if runnable is not precision:
            path.unlink()
            (folder / f"{path.name}.data").unlink()


def _providers(device: torch.device) -> Sequence[Any] | None:
    if device.type == "cpu":
        return [_CPU]
    if _GPU not in ort.get_available_providers():
        return None
    return [(_GPU, {**_GPU_OPTIONS, "device_id": str(device.index or 0)}), _CPU]


def _outputs(path: Path, inputs: Tensors, providers: Sequence[Any]) -> Tensors:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # What the graph says is checked, and no integer kernel that could stand for it.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Packed copies of the weights would double the memory for a graph that runs once.
    options.add_session_config_entry("session.disable_prepacking", "1")
    # The arena grows in powers of two and keeps what it has.
    options.enable_cpu_mem_arena = False
    session = ort.InferenceSession(path, options, providers=providers)
    feeds = {value.name: _given(inputs[value.name], value.type) for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    values = session.run_with_ort_values(names, feeds)
    return {name: _returned(value) for name, value in zip(names, values, strict=True)}


def _runnable(spec: GraphSpec, precision: Precision) -> Precision:
    """Half precision would send much of what is rounded to eight bits another way."""
    is_quantized = spec.rounding_tolerance is not None
    return PRECISIONS["fp32"] if precision.name == "bf16" or is_quantized else precision


def _given(tensor: Tensor, onnx_type: str) -> ort.OrtValue:
    if onnx_type == FLOAT8.onnxruntime:
        # torch gives numpy no such numbers: their codes are handed over.
        codes = tensor.view(torch.uint8).numpy()
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(codes, FLOAT8.onnx)
    array = tensor.numpy().astype(BY_ONNXRUNTIME[onnx_type].numpy, copy=False)
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _returned(value: ort.OrtValue) -> Tensor:
    tensor = torch.from_numpy(value.numpy())
    is_fp8 = value.data_type() == FLOAT8.onnxruntime
    return as_numbers(tensor.view(torch_type(FLOAT8)) if is_fp8 else tensor)


def as_numbers(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in QUANTIZED_TYPES else tensor
