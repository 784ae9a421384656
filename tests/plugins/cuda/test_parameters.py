"""Layouts of kernel parameters: the arithmetic, and that every source has the same."""

import ctypes
import re
from pathlib import Path
from typing import Any

import pytest

from longlive_trt.architectures import AMPERE, HOPPER
from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention import hopper, portable
from longlive_trt.plugins.cuda import compilation
from longlive_trt.plugins.cuda.compilation import (
    SOURCE_DIR,
    KernelSource,
    choose_compiler,
    texts_of,
)
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.parameters import (
    FLOAT,
    INT,
    LONG,
    POINTER,
    ParameterStruct,
    opaque,
)
from longlive_trt.plugins.kernels import values
from longlive_trt.plugins.kernels.registry import KERNELS

LAUNCHED = {
    kernel.file: kernel
    for node in KERNELS.values()
    for architecture in (AMPERE, HOPPER)
    for kernel in node.cuda_kernels(architecture)
}
# No graph says that it launches this.
LAUNCHED[values.MOVED.file] = values.MOVED
NESTED = [
    (hopper.KERNEL, "Problem", hopper.PROBLEM),
    (portable.KERNEL, "Tensor", portable.TENSOR),
]
STRUCTS = [*((kernel, "Params", kernel.parameters) for kernel in LAUNCHED.values()), *NESTED]
# TensorRT passes it pointers and integers one by one.
WITHOUT_A_STRUCT = {"attention/attention_plugin_sm90.cu"}


def test_fields_lie_as_c_lays_them_out() -> None:
    class Same(ctypes.Structure):
        _fields_ = (
            ("a", ctypes.c_int),
            ("b", ctypes.c_void_p),
            ("c", ctypes.c_float * 3),
            ("d", ctypes.c_longlong),
            ("e", ctypes.c_int),
        )

    ours = ParameterStruct(a=INT, b=POINTER, c=FLOAT * 3, d=LONG, e=INT)
    assert ours.size_bytes == ctypes.sizeof(Same)
    assert ours.offsets_bytes == {name: getattr(Same, name).offset for name in "abcde"}
    same = Same(-1, 1 << 40, (0.5, 1.5, 2.5), -(1 << 40), 7)
    assert ours.pack(a=-1, b=1 << 40, c=(0.5, 1.5, 2.5), d=-(1 << 40), e=7) == bytes(same)


def test_an_aligned_block_is_padded_to_its_alignment() -> None:
    ours = ParameterStruct(a=INT, block=opaque(100, alignment_bytes=64), b=INT)
    assert ours.offsets_bytes == {"a": 0, "block": 64, "b": 164}
    assert ours.size_bytes == 192
    packed = ours.pack(a=1, block=b"x" * 100, b=2)
    assert packed[64:164] == b"x" * 100 and len(packed) == 192


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": 1}, "missing or unknown parameters: b"),
        ({"a": 1, "b": (1, 2), "c": 1}, "missing or unknown parameters: c"),
        ({"a": 1, "b": (1, 2, 3)}, "parameter b has 3 values: it takes 2"),
    ],
)
def test_parameters_that_do_not_fit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ParameterStruct(a=INT, b=POINTER * 2).pack(**values)


def test_every_source_with_parameters_is_launched_by_a_node() -> None:
    sources = {path.relative_to(SOURCE_DIR).as_posix() for path in SOURCE_DIR.rglob("*.cu")}
    assert sources == LAUNCHED.keys() | WITHOUT_A_STRUCT


def asserted_bytes(file: str, struct: str) -> list[int]:
    texts = "".join((SOURCE_DIR / name).read_text() for name in texts_of(file))
    found = re.findall(rf"static_assert\(sizeof\({struct}\) == (\d+),", texts)
    return [int(size) for size in found]


@pytest.mark.parametrize(
    ("kernel", "struct", "ours"), STRUCTS, ids=lambda x: x.name if isinstance(x, CudaKernel) else ""
)
def test_every_source_asserts_the_size_that_is_packed(
    kernel: CudaKernel, struct: str, ours: ParameterStruct
) -> None:
    assert asserted_bytes(kernel.file, struct) == [ours.size_bytes]


# NVRTC has no <cstddef>, and older ones no __builtin_offsetof; this is how its front end spells it.
OFFSET = "#define offsetof(T, m) __INTADDR__(&(((T*)0)->m))\n"


def layout_asserts(struct: str, ours: ParameterStruct) -> str:
    """What holds the compiler to our layout."""
    checks = [f"sizeof({struct}) == {ours.size_bytes}"]
    checks += [
        f"offsetof({struct}, {name}) == {offset}" for name, offset in ours.offsets_bytes.items()
    ]
    return OFFSET + "".join(f'static_assert({check}, "{check}");\n' for check in checks)


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compiles a source with more text behind it, in front of all that makes machine code of it."""
    try:
        compiler = choose_compiler("nvrtc")
    except PluginError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(
        compilation, "_BASE_OPTIONS", (*compilation._BASE_OPTIONS, "--fdevice-syntax-only")
    )

    def compile_with(kernel: CudaKernel, text: str) -> None:
        path = tmp_path / "checked.cu"
        path.write_text(f'#include "{kernel.file}"\n{text}')
        source = KernelSource(str(path), kernel.name)
        compiler.compile(source, "sm_90a", "ptx")

    return compile_with


@pytest.mark.parametrize(
    ("kernel", "struct", "ours"), STRUCTS, ids=lambda x: x.name if isinstance(x, CudaKernel) else ""
)
def test_every_field_lies_where_the_source_reads_it(
    kernel: CudaKernel, struct: str, ours: ParameterStruct, compiled: Any
) -> None:
    compiled(kernel, layout_asserts(struct, ours))


def test_a_layout_that_drifts_is_seen(compiled: Any) -> None:
    kernel = KERNELS["rotate"].cuda_kernels(HOPPER)[0]
    swapped = ParameterStruct(
        input=POINTER,
        sine=POINTER,
        cosine=POINTER,
        output=POINTER,
        scale=POINTER,
        rows=INT,
        tokens=INT,
    )
    with pytest.raises(PluginError, match=r"offsetof\(Params, sine\) == 8"):
        compiled(kernel, layout_asserts("Params", swapped))
    longer = ParameterStruct(input=POINTER, more=POINTER * 6)
    with pytest.raises(PluginError, match=r"sizeof\(Params\) == 56"):
        compiled(kernel, layout_asserts("Params", longer))


@pytest.mark.parametrize("name", [n for n in KERNELS if not n.endswith(("attention", "gemm"))])
def test_a_node_its_source_and_its_kernel_have_one_name(name: str) -> None:
    (kernel,) = KERNELS[name].cuda_kernels(HOPPER)
    assert kernel.name == name
    assert re.search(rf"\s{name}\(const __grid_constant__ Params params\)", text_of(kernel))


def text_of(kernel: CudaKernel) -> str:
    return (SOURCE_DIR / kernel.file).read_text()
