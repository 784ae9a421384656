"""The report is read from the builder's list of layers, line by line."""

import pytest

from longlive_trt.engines.trt.failures import explain_failure, require_attention, require_memory
from longlive_trt.engines.trt.graph import AttentionSite
from longlive_trt.engines.trt.monitor import BuildLog
from longlive_trt.engines.trt.report import GraphReport, count_attention, parse_layers
from longlive_trt.errors import EngineError


def tensor(name: str, shape: str, kind: str) -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{shape}], Strides: [1], StrideOrder: [0], "
        f"Datatype: {kind}, Format: (Linear) Row major linear format }}"
    )


def line(
    name: str,
    kind: str,
    inputs: list[str],
    outputs: list[str],
    constants: list[str] | None = None,
    sources: str = "",
) -> str:
    held = "" if constants is None else f"Constants: [{', '.join(constants)}], "
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {', '.join(inputs)}], {held}"
        f"Outputs: [ {', '.join(outputs)}], TacticName: t_0x1, StreamId: 0, Metadata: {sources}"
    )


Q = tensor("q", "2,288,128", "Half")
LENGTH = tensor("(Unnamed Layer* 5) [Cast]_output", "1,1,1,1", "Int32")
SITES = (AttentionSite("self_attention.0", True), AttentionSite("cross_attention.0", False))


def attention(site: str, group: int, *inputs: str, note: str = "") -> str:
    return line(
        f"_gemm_mha_v2_myl{group}_7", "kgen", [Q, *inputs], [Q], [], f"[ONNX Layer: {site}{note}]"
    )


def test_a_line_is_read_whole() -> None:
    weight = tensor("w", "256,512", "FP8")
    text = line(
        "mm1+mm2_myl0_3",
        "gemm",
        [tensor("x", "1,-1,256", "FP8")],
        [tensor("y", "1,-1,512", "Half")],
        [weight],
        "[ONNX Layer: mm1][ONNX Layer: mm2]",
    )
    (layer,) = parse_layers(f"Layers:\n{text}\n\nI/O Tensors:\n Name: x, IOMode: Input")
    assert (layer.name, layer.kind, layer.category) == ("mm1+mm2_myl0_3", "gemm", "matrix product")
    assert layer.sources == ("mm1", "mm2")
    assert layer.inputs[0].shape == (1, -1, 256)
    assert layer.outputs[0].shape == (1, -1, 512)
    assert layer.precision == "FP8"


@pytest.mark.parametrize(
    ("name", "kind", "category"),
    [
        ("_gemm_mha_v2_myl0_13", "kgen", "attention"),
        ("__myl_MaxrSubExpSumDiv_myl0_14", "kgen", "softmax"),
        ("node_linear_myl0_1", "gemm", "matrix product"),
        ("__myl_FcAddMulAdd_myl0_15", "runtime_fusion", "matrix product"),
        ("conv_myl0_4", "correlation", "convolution"),
        ("__myl_MoveReshTran_myl0_5", "kgen", "other"),
    ],
)
def test_kinds_of_kernels(name: str, kind: str, category: str) -> None:
    (layer,) = parse_layers(line(name, kind, [Q], [Q], []))
    assert layer.category == category


def test_a_group_belongs_to_the_profile_that_one_of_its_layers_names() -> None:
    named = line("gemm [profile 1]_myl3_2", "gemm", [Q], [Q], [])
    layers = parse_layers("\n".join([attention("a", 1), named, attention("a", 3)]))
    assert [layer.profile for layer in layers] == [0, 1, 1]


def test_every_site_needs_one_kernel_in_every_profile() -> None:
    text = [attention("self_attention.0", 1, LENGTH), attention("cross_attention.0", 1)]
    second = line("x [profile 1]_myl3_1", "kgen", [Q], [Q], [])
    count = count_attention(parse_layers("\n".join([*text, second])), SITES, ["one", "two"])
    assert (count.expected, count.fused) == (4, 2)
    assert count.faults == (
        "self_attention.0 (two): 0 fused kernels",
        "cross_attention.0 (two): 0 fused kernels",
    )


def test_a_kernel_that_ignores_the_length_is_a_fault() -> None:
    text = [attention("self_attention.0", 0), attention("cross_attention.0", 0)]
    count = count_attention(parse_layers("\n".join(text)), SITES, ["only"])
    assert count.faults == ("self_attention.0 (only): the number of valid keys is ignored",)
    with pytest.raises(EngineError, match=r"graph step: attention is not one kernel: self_attent"):
        require_attention(report(parse_layers("\n".join(text)), count))


def test_quantized_attention_in_a_wide_kernel_is_a_fault() -> None:
    sites = (AttentionSite("self_attention.0", True, is_fp8=True),)
    narrow = tensor("q", "2,288,128", "FP8")
    for inputs, faults in (
        ((LENGTH,), ("self_attention.0 (only): computes in Half",)),
        ((LENGTH, narrow), ()),
    ):
        layers = parse_layers(attention("self_attention.0", 0, *inputs))
        assert count_attention(layers, sites, ["only"]).faults == faults


def report(layers: list[object], count: object) -> GraphReport:
    return GraphReport("step", (), tuple(layers), count, (), 0, 0, 0.0, 0)  # type: ignore[arg-type]


def test_no_list_of_layers_is_no_proof() -> None:
    count = count_attention([], (), ["only"])
    with pytest.raises(EngineError, match="listed no layers"):
        require_attention(report([], count))


def test_the_log_keeps_what_is_read_later() -> None:
    log = BuildLog()
    for is_error, message in (
        (False, "Total Activation Memory: 280125440 bytes"),
        (False, "Total Activation Memory: 900246528 bytes"),
        (False, "Total Weights Memory: 202847360 bytes"),
        (False, "After scale fusion: 1 layers"),
        (True, "Error Code 7: no \n"),
        (False, "Layers:\nName: a"),
    ):
        log.take(is_error, message)
    assert log.activation_bytes == [280125440, 900246528]
    assert log.weights_bytes == 202847360
    assert log.errors == ["Error Code 7: no"]
    assert log.layers == "Layers:\nName: a"


def test_memory_is_asked_for_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 8 << 30

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    require_memory("step", 2 << 30)
    with pytest.raises(EngineError, match=r"about 30\.2 GiB of memory, and 8\.0 GiB are free; exp"):
        require_memory("text", 10 << 30)


def test_running_out_of_memory_names_the_options() -> None:
    error = explain_failure("step", ["Error Code 2: OutOfMemory (Requested 12 GiB)"], 3 << 30)
    assert "Requested 12 GiB" in str(error)
    assert "3.0 GiB" in str(error)
    assert "--workspace-gib or --optimization-level" in str(error)


def test_attention_without_a_kernel_is_explained() -> None:
    said = "CHECK(...) failed. Attention operation was not supported by a dedicated kernel."
    assert "no fused kernel" in str(explain_failure("step", [said], 0))
    assert "it said why" in str(explain_failure("step", ["it said why"], 0))
    assert "no reason was given" in str(explain_failure("step", [], 0))
