"""The product whose GELU other products hide: when it is launched, and on a GPU against float64."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from longlive_trt.architectures import AMPERE, HOPPER, Architecture
from longlive_trt.plugins.cuda.compilation import CompilerName
from longlive_trt.plugins.cuda.cublaslt import Product
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.streams import Gpu, Stream
from longlive_trt.plugins.cuda.tensors import DeviceTensor, as_device_tensor
from longlive_trt.plugins.kernels import gelu_product, gemm
from longlive_trt.plugins.kernels.gelu_product import GeluProduct, GeluTiles, blocks_of, takes
from longlive_trt.plugins.kernels.gemm import Gemm
from tests.plugins.kernels.arrays import to_device
from tests.plugins.kernels.gelu_inputs import gelu_in_float64, gelu_inputs
from tests.plugins.kernels.sources import require_compiled

FLOAT8 = "float8_e4m3"
_NAN = 0x7F
_BEYOND = 70
"""Rows behind the result, which are not its."""


def product(**changes: Any) -> Product:
    """That of a layer, as the step graph asks for it."""
    asked: dict[str, Any] = {
        "rows": 4680,
        "inner": 1536,
        "columns": 8960,
        "dtype": FLOAT8,
        "out_dtype": FLOAT8,
        "bias": True,
        "activation": "gelu",
        "transposed": True,
        "bias_dtype": "bfloat16",
    }
    return Product(**{**asked, **changes})


@pytest.mark.parametrize(
    "changes",
    [{}, {"rows": 1}, {"columns": 384}, {"inner": 128}, {"bias_dtype": "float16"}],
    ids=str,
)
def test_products_that_have_a_kernel(changes: dict[str, Any]) -> None:
    assert takes(product(**changes), HOPPER)


@pytest.mark.parametrize(
    "changes",
    [
        *({"activation": "none"}, {"bias": False}, {"out_dtype": "bfloat16"}),
        {"dtype": "bfloat16", "out_dtype": "bfloat16"},
        # Rows that are no whole steps, or too long; columns that are no whole tiles.
        *({"inner": 1472}, {"inner": 1664}, {"columns": 8896}),
    ],
    ids=str,
)
def test_products_that_have_none(changes: dict[str, Any]) -> None:
    assert not takes(product(**changes), HOPPER)


@pytest.mark.parametrize("architecture", [AMPERE, Architecture(8, 9), Architecture(10, 0)], ids=str)
def test_other_gpus_have_none(architecture: Architecture) -> None:
    assert not takes(product(), architecture)


def test_no_block_is_without_a_unit() -> None:
    assert blocks_of(4680, 8960, 132) == 132
    assert (blocks_of(130, 128, 132), blocks_of(1, 384, 132)) == (3, 3)


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who multiplied, on a GPU that is only talked of."""
    calls: list[str] = []

    class Library:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __call__(self, *_: object, **__: object) -> None:
            calls.append("cuBLASLt")

    def launch(kernel: CudaKernel, *_: object, **__: object) -> None:
        calls.append(kernel.name)

    monkeypatch.setattr(gelu_product, "tensor_map", lambda *_: bytes(128))
    monkeypatch.setattr(gemm, "Matmul", Library)
    monkeypatch.setattr(gemm, "_workspace", lambda _place: SimpleNamespace())
    monkeypatch.setattr(CudaKernel, "launch", launch)
    return calls


@pytest.mark.parametrize(
    ("columns", "architecture", "expected"),
    [
        (256, HOPPER, "gelu_product"),
        (192, HOPPER, "cuBLASLt"),
        (256, Architecture(8, 9), "cuBLASLt"),
    ],
)
def test_the_library_multiplies_where_our_kernel_cannot(
    columns: int,
    architecture: Architecture,
    expected: str,
    multiplied: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = SimpleNamespace(architecture=architecture, multiprocessors=132)
    monkeypatch.setattr(gelu_product, "device_facts", lambda _device: facts)
    kernel = GeluProduct(activation="gelu", scale=1.0, narrow=True)
    shapes = ((3, 128), (columns, 128), (columns,), (1,))
    types = (FLOAT8, FLOAT8, "bfloat16", "float32")
    inputs = [DeviceTensor.contiguous(1 << 20, *each) for each in zip(shapes, types, strict=True)]
    out = DeviceTensor.contiguous(1 << 21, (3, columns), FLOAT8)
    place: Any = SimpleNamespace(device=0, stream=SimpleNamespace(handle=0))
    kernel.launch(inputs, [out], place)
    assert multiplied == [expected]


@pytest.mark.parametrize(
    ("compiler", "tiles"),
    [
        ("nvcc", GeluTiles(1536)),
        ("nvrtc", GeluTiles(1536)),
        ("nvrtc", GeluTiles(128)),
    ],
    ids=str,
)
def test_the_source_compiles(compiler: CompilerName, tiles: GeluTiles) -> None:
    """It holds the shared memory that is counted here to what it uses."""
    constants = {**tiles.constants, "LL_ELEMENT": int(compiler == "nvcc")}
    require_compiled("gelu_product", constants, compiler, "products")
    assert tiles.shared_bytes <= 227 * 1024


# ---- on a GPU ------------------------------------------------------------------------------------


@pytest.fixture
def hopper(need_gpu: Any) -> Any:
    return need_gpu((9, 0), exactly=True)


def by_node(inputs: Sequence[Any], scale: float, node: type[Gemm] = GeluProduct) -> Any:
    """In memory that was NaN; nothing behind the result is written."""
    rows, columns = inputs[0].shape[0], inputs[1].shape[0]
    memory = torch.full((rows + _BEYOND, columns), _NAN, dtype=torch.uint8, device="cuda")
    out = memory[:rows].view(torch.float8_e4m3fn)
    kernel = node(activation="gelu", scale=scale, narrow=True)
    views = [as_device_tensor(tensor, "tensor") for tensor in (*inputs, out)]
    with Placement(Stream(Gpu(), torch.cuda.current_stream().cuda_stream)) as place:
        kernel.launch(views[:-1], views[-1:], place)
        torch.cuda.synchronize()
    assert bool((memory[rows:] == _NAN).all())
    return out


def on_gpu(
    rows: int, inner: int, columns: int, bias_type: str, seed: int
) -> tuple[list[Any], float]:
    inputs, scale = gelu_inputs(rows, inner, columns, bias_type, seed)
    return [to_device(array) for array in inputs], scale


def relative(found: Any, expected: Any) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def check_on_the_gpu(rows: int, inner: int, columns: int, bias_type: str) -> None:
    """No further off than one rounding of what is exact, and than the library."""
    inputs, scale = on_gpu(rows, inner, columns, bias_type, seed=rows + inner + columns)
    exact = gelu_in_float64(torch, inputs, scale)
    rounded = exact.float().to(torch.float8_e4m3fn)
    found = by_node(inputs, scale)
    error = relative(found, exact)
    assert error <= 1.1 * relative(rounded, exact)
    assert error <= 1.05 * relative(by_node(inputs, scale, Gemm), exact)
    # No value is further off than a step and what tensor cores cut off the largest sums.
    step = rounded.double().abs() / 8 + 0.02 * inputs[3].double()
    assert bool(((found.double() - rounded.double()).abs() <= 1.01 * step).all())


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("bias_type", ["bfloat16", "float16"])
@pytest.mark.parametrize("rows", [1, 63, 64, 130, 4680, 14040])
def test_the_layer_on_the_gpu(rows: int, bias_type: str) -> None:
    check_on_the_gpu(rows, 1536, 8960, bias_type)


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("columns", [128, 384, 2048, 2304])
@pytest.mark.parametrize("inner", [128, 640, 1536])
@pytest.mark.parametrize("rows", [1, 33, 257, 8500])
def test_other_sizes_on_the_gpu(rows: int, inner: int, columns: int) -> None:
    """Of pairs of blocks and of blocks alone, which change their weights never or many times."""
    check_on_the_gpu(rows, inner, columns, "bfloat16")


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
def test_results_repeat_bit_by_bit_on_the_gpu() -> None:
    inputs, scale = on_gpu(4680, 1536, 8960, "bfloat16", seed=5)
    first = by_node(inputs, scale).view(torch.uint8)
    for _ in range(50):
        again = by_node(inputs, scale)
        assert torch.equal(again.view(torch.uint8), first)


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
def test_a_captured_launch_reads_what_is_new_on_the_gpu() -> None:
    (inputs, scale), (others, _) = (on_gpu(700, 1536, 1024, "float16", seed) for seed in (1, 2))
    out = torch.empty(700, 1024, dtype=torch.float8_e4m3fn, device="cuda")
    views = [as_device_tensor(tensor, "tensor") for tensor in (*inputs, out)]
    kernel = GeluProduct(activation="gelu", scale=scale, narrow=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with Placement(Stream(Gpu(), stream.cuda_stream)) as place:
        kernel.launch(views[:-1], views[-1:], place)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            kernel.launch(views[:-1], views[-1:], place)
        for tensor, other in zip(inputs, others, strict=True):
            tensor.copy_(other)
        graph.replay()
        torch.cuda.synchronize()
    wanted = by_node(others, scale)
    assert torch.equal(out.view(torch.uint8), wanted.view(torch.uint8))


def test_inputs_are_what_their_kind_is_for() -> None:
    """Means and outliers are there, and few results are cut off."""
    inputs, scale = gelu_inputs(130, 1536, 256, "float16", seed=1)
    x = np.abs(inputs[0].astype(np.float32)).mean(0)
    assert x[::17].mean() > 3 * np.delete(x, np.s_[::17]).mean()
    exact = gelu_in_float64(torch, [torch.from_numpy(i.astype(np.float64)) for i in inputs], scale)
    assert 0 < float((exact == exact.max()).double().mean()) < 0.05
    assert float((exact < 0).double().mean()) > 0.1
