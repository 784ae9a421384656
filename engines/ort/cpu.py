"""ONNX Runtime: the engine that runs everywhere, and the one that a CPU uses."""

import logging
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from longlive_trt.basics import Array, Given
from longlive_trt.contract import ONNX_SUFFIX, weights_file
from longlive_trt.dtypes import BY_NUMPY, BY_ONNXRUNTIME, FLOAT8, name_of
from longlive_trt.engines.base import TensorSpec, TensorTable, require_fit
from longlive_trt.engines.ort.rewrites import rewrite
from longlive_trt.errors import EngineError, UsageError
from longlive_trt.exports import damage_refused, load_graph
from longlive_trt.extras import engine_command
from longlive_trt.precision import Precision, compute_precision, retype

logger = logging.getLogger(__name__)

_NOTHING_LEFT = ("pthread_create failed", "Cannot allocate memory", "bad_alloc")


def version() -> str:
    return str(ort.__version__)


def require_arithmetic(precision: Precision) -> None:
    """Refuse what no kernel on this machine computes in."""
    if precision.name == "bf16" and "CUDAExecutionProvider" not in ort.get_available_providers():
        raise UsageError(
            "onnxruntime has no bfloat16 arithmetic on a CPU; build with --precision fp32 or fp16, "
            f"or, where there is a GPU, run `{engine_command('gpu')}`"
        )


def build_graph(
    source: Path,
    folder: Path,
    precision: Precision,
    change: Callable[[ir.Model], bool] = lambda _model: False,
) -> None:
    """Optimize a graph ahead of time; the model and its weights go to ``folder``.

    ``change`` is made to it before, and says whether there was any.
    """
    name = source.stem
    require_utf8(folder)
    with damage_refused(source):
        model = load_graph(source)
        changed = _changed(model, source, folder, precision, change)
        options = _options()
    # Higher levels would tie the model to this machine's processor. FP8 stays FP8 at the basic
    # level only: the others put integer kernels around it, which refuse it.
    levels = ort.GraphOptimizationLevel
    basic = _holds_fp8(model)
    options.graph_optimization_level = (
        levels.ORT_ENABLE_BASIC if basic else levels.ORT_ENABLE_EXTENDED
    )
    options.optimized_model_filepath = str(folder / f"{name}{ONNX_SUFFIX}")
    for key, value in (
        ("optimized_model_external_initializers_file_name", weights_file(name)),
        ("optimized_model_external_initializers_min_size_in_bytes", "1024"),
        # Packed copies would cost memory and are not saved.
        ("disable_prepacking", "1"),
    ):
        options.add_session_config_entry(f"session.{key}", value)
    _open_session(changed or source, options)
    for leftover in folder.glob(f".{name}.changed*"):
        leftover.unlink()


def _holds_fp8(model: ir.Model) -> bool:
    """In weights, or made of activations by the graph or its functions."""
    fp8 = ir.DataType(FLOAT8.onnx)
    nodes = [*model.graph, *(node for body in model.functions.values() for node in body)]
    types = (node.attributes.get("output_dtype") for node in nodes)
    weights = model.graph.initializers.values()
    return any(value.dtype == fp8 for value in weights) or any(
        attribute is not None and attribute.as_int() == fp8 for attribute in types
    )


def _changed(
    model: ir.Model,
    source: Path,
    folder: Path,
    precision: Precision,
    change: Callable[[ir.Model], bool],
) -> Path | None:
    """The graph in another precision, or in other operators; None if it stays as it is."""
    is_retyped = compute_precision(model) != precision
    if is_retyped:
        retype(model, precision)
    is_rewritten, is_changed = rewrite(model), change(model)
    if not (is_rewritten or is_retyped or is_changed):
        return None
    path = folder / f".{source.stem}.changed.onnx"
    ir.save(model, path, external_data=weights_file(path.name))
    return path


class OnnxRuntimeEngine(TensorTable):
    """One graph in one inference session."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        options = _options()
        # The build found every place for an integer kernel; what is left is for float ones.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = _open_session(path, options)
        self.name = path.stem
        self._bindings: weakref.WeakSet[OnnxRuntimeBinding] = weakref.WeakSet()
        self._inputs = {spec.name: spec for spec in map(spec_of, self._session.get_inputs())}
        self._outputs = {spec.name: spec for spec in map(spec_of, self._session.get_outputs())}

    def bind(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> "OnnxRuntimeBinding":
        self._require_inputs(inputs)
        for tensors, known in ((inputs, self._inputs), (outputs, self._outputs)):
            for name, array in tensors.items():
                require_fit(self.name, name, known.get(name), _given(array))
        binding = OnnxRuntimeBinding(self._session, self.name, inputs, outputs)
        self._bindings.add(binding)
        return binding

    def close(self) -> None:
        """Bindings end with it: they would keep the session, and its memory."""
        for binding in list(self._bindings):
            binding.close()
        del self._session


class OnnxRuntimeBinding:
    def __init__(
        self,
        session: ort.InferenceSession,
        graph: str,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
    ) -> None:
        self._session: ort.InferenceSession | None = session
        self._graph = graph
        self._binding = session.io_binding()
        # The binding knows addresses only; whoever holds it holds the arrays.
        self._arrays = (dict(inputs), dict(outputs))
        for name, array in inputs.items():
            self._binding.bind_input(name, "cpu", 0, *_address(array))
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, *_address(array))

    def run(self) -> None:
        if self._session is None:
            raise EngineError(
                f"graph {self._graph}: what is to run here was closed with its engine"
            )
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's errors have no common base
            raise EngineError(
                f"graph {self._graph} failed in onnxruntime: {brief(error)}"
            ) from error

    def close(self) -> None:
        self._session = self._binding = None


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    # Failures come as exceptions, and are told once.
    options.log_severity_level = 4
    return options


def require_utf8(path: Path) -> None:
    """The library takes texts for paths."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise EngineError(
            f"{path}: onnxruntime opens no file whose path is not UTF-8; rename the folder"
        ) from None


def _open_session(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    require_utf8(path)
    try:
        # Its fallback would try the same again, and print what it thinks of it.
        return ort.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # onnxruntime's errors have no common base
        if any(words in str(error) for words in _NOTHING_LEFT):
            raise EngineError(
                f"{path}: no memory, or no thread, is to be had for its engine; end other "
                f"programs, or raise the limits (ulimit -v, ulimit -u)"
            ) from None
        raise EngineError(f"{path}: onnxruntime cannot load the graph: {brief(error)}") from None


def brief(error: Exception) -> str:
    return " ".join(str(error).split())


def spec_of(value: ort.NodeArg) -> TensorSpec:
    return TensorSpec(value.name, BY_ONNXRUNTIME[value.type].numpy, tuple(value.shape))


def _address(array: Array) -> tuple[object, tuple[int, ...], int]:
    return BY_NUMPY[array.dtype].onnx, array.shape, array.ctypes.data


def _given(array: Array) -> Given:
    return Given(array.shape, name_of(array.dtype), array.flags.c_contiguous)
