"""Compilation without a GPU: what is compiled, what the cache key covers, what a failure says."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.portable import portable_constants
from longlive_trt.plugins.attention.tensorrt_plugin import plugin_source
from longlive_trt.plugins.attention.variants import Variant, choose_variant
from longlive_trt.plugins.cuda import compilation
from longlive_trt.plugins.cuda.compilation import KernelSource, cache_key, compile_kernel

NVCC = compilation.find_nvcc()
COMPILERS = [
    pytest.param(
        "nvcc", marks=pytest.mark.skipif(NVCC is None, reason="nvcc was not found on this machine")
    ),
    pytest.param(
        "nvrtc",
        marks=pytest.mark.skipif(
            not compilation.nvrtc_is_available(), reason="NVRTC or cuda-core is not installed"
        ),
    ),
]
NORM = KernelSource("rows/rms_norm.cu", "rms_norm", {"LL_DIM": 256, "LL_ELEMENT": 0})


class FakeCompiler:
    name = "fake"

    def __init__(self, version="1.0"):
        self._version = version
        self.calls = 0

    def version(self):
        return self._version

    def compile(self, source, architecture, kind):
        self.calls += 1
        return f"{source.file} {architecture} {kind} {self.calls}".encode()


def hopper_source(dtype="bfloat16", head_dim=128, keys=18720):
    variant = choose_variant(dtype, head_dim, keys)
    constants = dict(variant.constants(dtype, head_dim))
    return KernelSource("attention/attention_sm90.cu", "attention_sm90", constants)


def portable_source(dtype="bfloat16", head_dim=128):
    constants = portable_constants(dtype, head_dim)
    return KernelSource("attention/attention_sm80.cu", "attention_sm80", constants)


def row_source(entry, **constants):
    return KernelSource(f"rows/{entry}.cu", entry, {"LL_ELEMENT": 0, "LL_DIM": 1536, **constants})


ROPE = row_source("qkv_norm_rope", LL_HEAD_DIM=128, LL_PLAIN=0, LL_QUANTIZE=0)
ROPE_E4M3 = row_source("qkv_norm_rope", LL_HEAD_DIM=128, LL_PLAIN=0, LL_QUANTIZE=2)
SUM = row_source("residual_norm", LL_GATE=1, LL_NORM=1)
VALUES = row_source("transposed_values", LL_HEAD_DIM=128)
PLUGIN = plugin_source("bfloat16", 128, 128**-0.5, Variant(3, 80, 3))

COMPILED = [
    (hopper_source(), "sm_90a", "cubin"),
    *[(portable_source(), arch, "cubin") for arch in ("sm_80", "sm_89", "sm_90a", "sm_100")],
    (portable_source(), "sm_80", "ptx"),
    *[(ROPE, arch, "cubin") for arch in ("sm_80", "sm_90a", "sm_100")],
    (ROPE_E4M3, "sm_89", "cubin"),
    (SUM, "sm_80", "cubin"),
    (VALUES, "sm_89", "cubin"),
    (VALUES, "sm_100", "ptx"),
]
RARELY_COMPILED = [
    (hopper_source(keys=512), "sm_90a", "cubin"),
    (hopper_source(dtype="int8"), "sm_90a", "cubin"),
    (PLUGIN, "sm_90a", "ptx"),
    (hopper_source(dtype="float16"), "sm_90a", "cubin"),
    (hopper_source(dtype="float8_e4m3"), "sm_90a", "cubin"),
    (hopper_source(head_dim=64), "sm_90a", "ptx"),
    (portable_source("float16", 64), "sm_86", "cubin"),
    *[(SUM, arch, "cubin") for arch in ("sm_86", "sm_89", "sm_90a", "sm_100")],
    *[(ROPE_E4M3, arch, "ptx") for arch in ("sm_90a", "sm_100")],
]


def describe(case):
    source, architecture, kind = case
    return f"{Path(source.file).stem}-{architecture}-{kind}"


def check_binary(source, binary, kind):
    if kind == "ptx":
        assert f".entry {source.entry}(".encode() in binary
    else:
        assert binary.startswith(b"\x7fELF")
        assert source.entry.encode() in binary


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("case", COMPILED, ids=describe)
def test_compiles_without_a_gpu(case, compiler, tmp_path):
    source, architecture, kind = case
    binary = compile_kernel(source, architecture, kind=kind, compiler=compiler, cache_dir=tmp_path)
    check_binary(source, binary, kind)


@pytest.mark.exhaustive
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("case", RARELY_COMPILED, ids=describe)
def test_the_rest_compiles_too(case, compiler, tmp_path):
    source, architecture, kind = case
    binary = compile_kernel(source, architecture, kind=kind, compiler=compiler, cache_dir=tmp_path)
    check_binary(source, binary, kind)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_failure_carries_the_compilers_log(compiler, tmp_path):
    source = replace(NORM, constants={"LL_DIM": 100, "LL_ELEMENT": 0})
    with pytest.raises(PluginError) as caught:
        compile_kernel(source, "sm_80", compiler=compiler, cache_dir=tmp_path)
    message = str(caught.value)
    assert f"{compiler} could not compile rows/rms_norm.cu for sm_80" in message
    assert "-DLL_DIM=100" in message
    assert "rows are read sixteen bytes at a time" in message
    assert list(tmp_path.iterdir()) == []


def test_the_same_input_is_compiled_once(tmp_path):
    compiler = FakeCompiler()
    first = compile_kernel(NORM, "sm_80", compiler=compiler, cache_dir=tmp_path)
    assert compile_kernel(NORM, "sm_80", compiler=compiler, cache_dir=tmp_path) == first
    assert compiler.calls == 1


def test_the_key_covers_what_affects_the_binary(tmp_path, monkeypatch):
    sources = tmp_path / "csrc"
    shutil.copytree(compilation.SOURCE_DIR, sources)
    monkeypatch.setattr(compilation, "SOURCE_DIR", sources)

    def key(source=NORM, architecture="sm_80", kind="cubin", compiler=None):
        return cache_key(source, architecture, kind, compiler or FakeCompiler())

    other_name = FakeCompiler()
    other_name.name = "other"
    keys = [
        key(),
        key(source=replace(NORM, constants={"LL_DIM": 512, "LL_ELEMENT": 0})),
        key(source=replace(NORM, entry="rotate")),
        key(source=replace(NORM, file="rows/residual_norm.cu")),
        key(architecture="sm_89"),
        key(kind="ptx"),
        key(compiler=FakeCompiler("1.1")),
        key(compiler=other_name),
    ]
    for touched in ("rows/rms_norm.cu", "rows/rows.cuh", "common/basics.cuh"):
        (sources / touched).write_text((sources / touched).read_text() + "\n")
        keys.append(key())
    assert len(set(keys)) == len(keys)
    unrelated = key()
    (sources / "attention" / "hopper.cuh").write_text("")
    assert key() == unrelated


def test_every_text_is_a_kernel_or_included_by_one():
    texts = {
        path.relative_to(compilation.SOURCE_DIR).as_posix()
        for path in compilation.SOURCE_DIR.rglob("*")
        if path.is_file()
    }
    kernels = {text for text in texts if text.endswith(".cu")}
    reached = {text for kernel in kernels for text in compilation.texts_of(kernel)}
    others = {text for text in texts if text.endswith(".c")}  # for the host's compiler
    assert reached | others == texts


def test_an_interrupted_publication_leaves_nothing_to_read(tmp_path, monkeypatch):
    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(PluginError, match="disk full"):
        compile_kernel(NORM, "sm_80", compiler=FakeCompiler(), cache_dir=tmp_path)
    assert list(tmp_path.glob("*.cubin")) == []


def test_a_reader_never_sees_half_a_binary(tmp_path):
    target = tmp_path / "kernel.cubin"
    contents = [bytes([letter]) * 200_000 for letter in b"ab"]
    compilation.publish(target, contents[0])
    stop = threading.Event()

    def publish_repeatedly():
        while not stop.is_set():
            for content in contents:
                compilation.publish(target, content)

    writer = threading.Thread(target=publish_repeatedly)
    writer.start()
    try:
        seen = {target.read_bytes() for _ in range(300)}
    finally:
        stop.set()
        writer.join()
    assert seen <= set(contents)
    assert [path.name for path in tmp_path.iterdir()] == ["kernel.cubin"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(PluginError, match="LONGLIVE_TRT_KERNEL_CACHE"):
        compile_kernel(NORM, "sm_80", compiler=FakeCompiler(), cache_dir=blocked)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(compilation.CACHE_ENVIRONMENT, str(tmp_path))
    assert compilation.default_cache_dir() == tmp_path


@pytest.mark.parametrize(
    ("name", "wanted"), [("auto", "nvcc or NVRTC"), ("nvcc", "nvcc"), ("nvrtc", "nvrtc")]
)
def test_without_a_compiler_the_error_says_what_to_install(name, wanted, monkeypatch):
    monkeypatch.setattr(compilation, "find_nvcc", lambda: None)
    monkeypatch.setattr(compilation, "nvrtc_is_available", lambda: False)
    with pytest.raises(PluginError, match=f"^{wanted} was not found: install the CUDA toolkit"):
        compilation.choose_compiler(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "sm_75"}, "architecture is 'sm_75': choose one of sm_80, sm_86"),
        ({"kind": "fatbin"}, "kind is 'fatbin': choose cubin or ptx"),
        ({"compiler": "clang"}, "compiler is 'clang': choose auto, nvcc or nvrtc"),
        ({"source": KernelSource("missing.cu", "x")}, "missing.cu does not exist"),
    ],
)
def test_bad_requests_are_refused(change, message, tmp_path):
    request = {"source": NORM, "architecture": "sm_80", "kind": "cubin", "compiler": "auto"}
    request |= change
    source, architecture = request.pop("source"), request.pop("architecture")
    with pytest.raises(PluginError, match=message):
        compile_kernel(source, architecture, cache_dir=tmp_path, **request)
