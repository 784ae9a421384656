"""Matrix products by cuBLASLt: what they refuse, what the library is told, and what it computes."""

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from longlive_trt.errors import PluginError
from longlive_trt.plugins.cuda import cublaslt
from longlive_trt.plugins.cuda.cublaslt import (
    WORKSPACE_BYTES,
    Algorithm,
    Matmul,
    Product,
    alignment_of,
    proposals,
)
from longlive_trt.plugins.cuda.streams import Gpu

torch = pytest.importorskip("torch")

PLAIN = {"rows": 77, "inner": 64, "columns": 96, "dtype": "float16", "out_dtype": "float16"}
# One rounding of the result, and sums in another order.
ROUNDING = {"float16": 3e-4, "bfloat16": 2.4e-3}


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(name: str) -> Any:
        raise RuntimeError(f"no such file: {name}")

    pathfinder = pytest.importorskip("cuda.pathfinder")
    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", fail)
    cublaslt._library.cache_clear()
    yield
    cublaslt._library.cache_clear()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float32"}, "a product of float32 to float16: allowed are float16"),
        ({"out_dtype": "int8"}, "a product of float16 to int8"),
        ({"dtype": "bfloat16"}, "a product of bfloat16 cannot give float16"),
        ({"activation": "relu"}, "activation is 'relu': choose none or gelu"),
        ({"dtype": "bfloat16", "out_dtype": "float8_e4m3"}, "cannot give float8_e4m3"),
        (
            {"dtype": "float8_e4m3", "out_dtype": "float8_e4m3"},
            "bias_dtype is '': a float8_e4m3 result needs float16 or bfloat16",
        ),
        ({"dtype": "float8_e4m3"}, r"must be transposed: \[columns, inner\]"),
        ({"rows": 0}, "an empty product: 0 x 64 x 96"),
        ({"inner": 60}, "inner is 60: it must be a multiple of 8"),
        ({"columns": 97}, "columns is 97: it must be a multiple of 8"),
        ({"dtype": "float8_e4m3", "transposed": True, "inner": 72}, "a multiple of 16"),
        ({"alignment_bytes": 8}, "must be aligned to 16 bytes"),
    ],
)
def test_impossible_products(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        Product(**{**PLAIN, **changes})


def test_a_missing_library_is_named(without_library: None) -> None:
    with pytest.raises(PluginError, match=r"no such file: cublasLt.* nvidia-cublas"):
        Matmul(Product(**PLAIN))


def test_alignment_is_that_of_the_least_aligned() -> None:
    assert alignment_of(4096, 1 << 20) == 256
    assert alignment_of(4096, 4096 + 32) == 32
    assert alignment_of(4096, 8) == 8


def test_the_heuristics_answer_has_the_size_of_the_header() -> None:
    assert ctypes.sizeof(Algorithm) == 96


class ProposingLibrary:
    """As much of cuBLASLt as proposes algorithms, and is told which one to take."""

    def __init__(self, *statuses: int) -> None:
        """Of each proposal; 0 for one that can be used."""
        self.statuses, self.taken = statuses, list[int]()

    def cublasLtMatmulAlgoGetHeuristic(self, *arguments: Any) -> int:  # noqa: N802
        *_, most, proposed, count = arguments
        count._obj.value = min(most.value, len(self.statuses))
        for index, status in enumerate(self.statuses[: most.value]):
            proposed[index].algorithm[0], proposed[index].status = index, status
        return 0

    def cublasLtMatmul(self, *arguments: Any) -> int:  # noqa: N802
        algorithm, _workspace, _bytes, _stream = arguments[-4:]
        self.taken.append(algorithm._obj.algorithm[0])
        return 0

    def __getattr__(self, name: str) -> Any:
        assert name.startswith("cublasLt")
        return lambda *_: 0


@pytest.fixture
def proposing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ProposingLibrary]]:
    def install(*statuses: int) -> ProposingLibrary:
        library = ProposingLibrary(*statuses)
        monkeypatch.setattr(cublaslt, "_library", lambda: library)
        monkeypatch.setattr(cublaslt, "_handle", lambda device: 1)
        return library

    cublaslt._first_proposal.cache_clear()
    yield install
    cublaslt._first_proposal.cache_clear()


def test_the_first_proposal_is_taken_unless_another_is_given(
    proposing: Callable[..., ProposingLibrary],
) -> None:
    library, product = proposing(15, 0, 0), Product(**PLAIN)
    for algorithm in (None, *proposals(product, 0)):
        Matmul(product, algorithm=algorithm)(256, 256, 256, workspace=256)
    # The one that cannot be used is no proposal.
    assert library.taken == [1, 1, 2]


def test_a_product_without_a_proposal_is_refused(
    proposing: Callable[..., ProposingLibrary],
) -> None:
    proposing(15)
    with pytest.raises(PluginError, match="cuBLASLt has no algorithm for Product"):
        Matmul(Product(**PLAIN))(256, 256, 256, workspace=256)


def attribute(kind: str, descriptor: Any, number: int, value: Any) -> int:
    read = getattr(cublaslt._library(), f"cublasLt{kind}GetAttribute")
    size, written = ctypes.c_size_t(ctypes.sizeof(value)), ctypes.c_size_t()
    status = read(descriptor.pointer, number, ctypes.byref(value), size, ctypes.byref(written))
    assert status == 0
    return int(value.value)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_library_is_told_the_transposed_problem(transposed: bool) -> None:
    try:
        cublaslt._library()
    except PluginError as error:
        pytest.skip(str(error))
    matmul = Matmul(Product(**PLAIN, bias=True, activation="gelu", transposed=transposed))
    described = matmul._description
    assert attribute("MatmulDesc", described, 3, ctypes.c_int32()) == int(transposed)
    assert attribute("MatmulDesc", described, 4, ctypes.c_int32()) == 0
    assert attribute("MatmulDesc", described, 7, ctypes.c_uint32()) == 36
    found = [
        tuple(attribute("MatrixLayout", layout, n, ctypes.c_uint64()) for n in (2, 3, 4))
        for layout in matmul._layouts
    ]
    weight = (64, 96, 64) if transposed else (96, 64, 96)
    assert found == [weight, (64, 77, 64), (96, 77, 96), (96, 77, 96)]


def test_what_a_product_was_made_with_is_what_it_is_called_with() -> None:
    try:
        matmul = Matmul(Product(**PLAIN))
    except PluginError as error:
        pytest.skip(str(error))
    with pytest.raises(PluginError, match="made with a bias and called without, or the reverse"):
        matmul(256, 256, 256, workspace=256, bias=256)
    with pytest.raises(PluginError, match="out_factor belongs to a float8_e4m3 result"):
        matmul(256, 256, 256, workspace=256, out_factor=256)


def random(*shape: int, dtype: str = "float32", seed: int = 0) -> Any:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda").to(getattr(torch, dtype))


@pytest.fixture
def workspace(need_gpu: Any) -> Iterator[int]:
    need_gpu((8, 0))
    with Gpu().reserve(WORKSPACE_BYTES, "a test") as memory:
        yield memory.pointer
        torch.cuda.synchronize()


def relative(found: Any, expected: Any) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def expected_product(x: Any, weight: Any, bias: Any, activation: str) -> Any:
    product = x.double() @ weight.double()
    product = product if bias is None else product + bias.double()
    gelu = torch.nn.functional.gelu
    return gelu(product, approximate="tanh") if activation == "gelu" else product


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("rows", "inner", "columns", "bias", "activation", "transposed"),
    [
        (4680, 1536, 4608, True, "none", False),
        (4680, 1536, 8960, True, "gelu", False),
        (4680, 8960, 1536, True, "none", True),
        (4680, 64, 1536, True, "none", False),
        (4680, 1536, 64, False, "none", False),
        (1, 256, 1536, True, "none", False),
        (333, 320, 192, False, "gelu", True),
    ],
)
def test_products(
    rows: int,
    inner: int,
    columns: int,
    bias: bool,
    activation: str,
    transposed: bool,
    dtype: str,
    workspace: int,
) -> None:
    x, weight = random(rows, inner, dtype=dtype), random(inner, columns, dtype=dtype, seed=1)
    weight *= inner**-0.5
    addend = random(columns, dtype=dtype, seed=2) if bias else None
    stored = weight.T.contiguous() if transposed else weight
    out = torch.full((rows, columns), float("nan"), dtype=x.dtype, device="cuda")
    product = Product(rows, inner, columns, dtype, dtype, bias, activation, transposed)
    call = {"bias": addend.data_ptr() if bias else 0}
    stream = torch.cuda.current_stream().cuda_stream
    addresses = (tensor.data_ptr() for tensor in (x, stored, out))
    Matmul(product)(*addresses, workspace=workspace, **call, stream=stream)
    wanted = expected_product(x, weight, addend, activation)
    assert relative(out, wanted) <= ROUNDING[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("narrow_result", [False, True])
@pytest.mark.parametrize(
    ("rows", "inner", "columns", "activation"),
    [(4680, 1536, 8960, "gelu"), (4680, 8960, 1536, "none"), (45, 256, 768, "none")],
)
def test_fp8_products(
    rows: int,
    inner: int,
    columns: int,
    activation: str,
    narrow_result: bool,
    dtype: str,
    need_gpu: Any,
    workspace: int,
) -> None:
    need_gpu((8, 9))
    x, weight = random(rows, inner).mul(30), random(columns, inner, seed=1).mul(30)
    narrow = [t.to(torch.float8_e4m3fn) for t in (x, weight)]
    scale = inner**-0.5 / 900
    bias = random(columns, dtype=dtype, seed=2)
    wanted = expected_product(narrow[0].double() * scale, narrow[1].double().T, bias, activation)
    out_factor = (448 / wanted.abs().max()).float().reshape(1)
    result = "float8_e4m3" if narrow_result else dtype
    stored = torch.float8_e4m3fn if narrow_result else bias.dtype
    out = torch.full((rows, columns), float("nan"), device="cuda").to(stored)
    Matmul(
        Product(
            *(rows, inner, columns, "float8_e4m3", result, True, activation, True),
            bias_dtype=dtype,
        )
    )(
        narrow[0].data_ptr(),
        narrow[1].data_ptr(),
        out.data_ptr(),
        workspace=workspace,
        bias=bias.data_ptr(),
        scale=scale,
        out_factor=out_factor.data_ptr() if narrow_result else 0,
        stream=torch.cuda.current_stream().cuda_stream,
    )
    found = out.double() / out_factor.double() if narrow_result else out
    # The tensor cores' FP8 sums keep fewer bits than float32; a result in FP8 has four of its own.
    assert relative(found, wanted) <= (3.5e-2 if narrow_result else 5e-3)
