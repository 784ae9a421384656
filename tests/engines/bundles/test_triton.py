"""Triton model repositories: read back with the schema that Triton reads them with."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from longlive_trt.engines.build import build
from longlive_trt.engines.bundles.bundle import Bundle, EngineKind, open_bundle
from longlive_trt.engines.bundles.triton import export_triton
from longlive_trt.errors import BundleError, UsageError
from longlive_trt.exports import GraphInfo, TensorInfo

MakeBundle = Callable[..., Path]

# The part of Triton's published model_config.proto that is used, with its names and types.
WIDTHS = [f"{kind}{bits}" for kind in ("UINT", "INT") for bits in (8, 16, 32, 64)]
DATA_TYPES = ["INVALID", "BOOL", *WIDTHS, "FP16", "FP32", "FP64", "STRING", "BF16"]
TENSOR = {"name": "string", "data_type": "DataType", "dims": "int64*"}
MESSAGES = {
    "ModelInput": TENSOR,
    "ModelOutput": TENSOR,
    "ModelInstanceGroup": {"kind": "Kind", "count": "int32", "profile": "string*"},
    "ModelConfig": {
        "name": "string",
        "platform": "string",
        "backend": "string",
        "max_batch_size": "int32",
        "input": "ModelInput*",
        "output": "ModelOutput*",
        "instance_group": "ModelInstanceGroup*",
        "default_model_filename": "string",
    },
}
ENUMS = {
    "DataType": [f"TYPE_{name}" for name in DATA_TYPES],
    "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"],
}
ORT_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(int64)": "TYPE_INT64",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(bool)": "TYPE_BOOL",
}


def model_config_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="t", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            add_field(message, field, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))


def add_field(message: Any, name: str, number: int, kind: str) -> None:
    types = descriptor_pb2.FieldDescriptorProto
    label = types.LABEL_REPEATED if kind.endswith("*") else types.LABEL_OPTIONAL
    kind = kind.rstrip("*")
    field = message.field.add(name=name, number=number, label=label)
    if kind in MESSAGES or kind in ENUMS:
        field.type = types.TYPE_MESSAGE if kind in MESSAGES else types.TYPE_ENUM
        field.type_name = f".t.{kind}"
    else:
        field.type = getattr(types, f"TYPE_{kind.upper()}")


MODEL_CONFIG = model_config_class()


def parse(repository: Path) -> dict[str, Any]:
    texts = {path.parent.name: path.read_text() for path in repository.glob("*/config.pbtxt")}
    return {name: text_format.Parse(text, MODEL_CONFIG()) for name, text in texts.items()}


def enum_name(message: Any, field: str) -> str:
    descriptor = message.DESCRIPTOR.fields_by_name[field]
    return str(descriptor.enum_type.values_by_number[getattr(message, field)].name)


def test_the_schema_rejects_what_triton_would() -> None:
    for text in ("nmae: 'x'", "input { dims: [ a ] }", "input { data_type: FP32 }", "name: 3"):
        with pytest.raises(text_format.ParseError):
            text_format.Parse(text, MODEL_CONFIG())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_graph_of_an_onnxruntime_bundle(
    precision: str, mini_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    exported = mini_bundle("relative").with_name("mini-relative-export")
    build(exported, tmp_path / "b", precision)
    models = export_triton(open_bundle(tmp_path / "b"), tmp_path / "models")
    assert models == {"step": "mini-relative_step", "prompt": "mini-relative_prompt"}
    configs = parse(tmp_path / "models")
    assert set(configs) == set(models.values())
    for name, config in configs.items():
        assert (config.name, config.backend, config.max_batch_size) == (name, "onnxruntime", 0)
        assert config.platform == "onnxruntime_onnx"
        assert [enum_name(group, "kind") for group in config.instance_group] == ["KIND_CPU"]
        version = tmp_path / "models" / name / "1"
        session = onnxruntime.InferenceSession(version / config.default_model_filename)
        require_same(config.input, session.get_inputs())
        require_same(config.output, session.get_outputs())


def require_same(described: Any, served: Any) -> None:
    expected = [
        (
            tensor.name,
            ORT_TYPES[tensor.type],
            [side if isinstance(side, int) else -1 for side in tensor.shape],
        )
        for tensor in served
    ]
    found = [(item.name, enum_name(item, "data_type"), list(item.dims)) for item in described]
    assert found == expected


def plan_bundle(
    folder: Path, fake_bundle: MakeBundle, kind: str = "tensorrt", **options: object
) -> Bundle:
    info = GraphInfo(
        (
            TensorInfo("latents", "bfloat16", ("batch", "frames", 16, 4, 6)),
            TensorInfo("sigma", "float", (1,)),
            TensorInfo("frame_index", "int64", ("frames",)),
        ),
        (TensorInfo("latents_next", "bfloat16", ("batch", "frames", 16, 4, 6)),),
    )
    made = fake_bundle(
        folder,
        {"step.engine": b"plan"},
        graphs={"step": info},
        engine=EngineKind(kind, "11.4.0.106", "sm90"),
        precision="bf16",
        options=options,
    )
    return open_bundle(made)


def test_a_tensorrt_plan(tmp_path: Path, fake_bundle: MakeBundle) -> None:
    export_triton(plan_bundle(tmp_path / "b", fake_bundle), tmp_path / "models")
    (config,) = parse(tmp_path / "models").values()
    assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
    assert [enum_name(group, "kind") for group in config.instance_group] == ["KIND_GPU"]
    # The denoising pass, the re-cache, and the re-cache of a window that is not full yet.
    assert list(config.instance_group[0].profile) == ["0", "1", "2"]
    assert [list(item.dims) for item in config.input] == [[-1, -1, 16, 4, 6], [1], [-1]]
    types = [enum_name(item, "data_type") for item in (*config.input, *config.output)]
    assert types == ["TYPE_BF16", "TYPE_FP32", "TYPE_INT64", "TYPE_BF16"]
    plan = tmp_path / "models" / config.name / "1" / config.default_model_filename
    assert plan.read_bytes() == b"plan"


def test_what_triton_cannot_serve(tmp_path: Path, fake_bundle: MakeBundle) -> None:
    rtx = plan_bundle(tmp_path / "b", fake_bundle, "tensorrt-rtx")
    with pytest.raises(UsageError, match="no backend for tensorrt-rtx"):
        export_triton(rtx, tmp_path / "models")
    stripped = plan_bundle(tmp_path / "s", fake_bundle, strip=True)
    with pytest.raises(UsageError, match="without their weights"):
        export_triton(stripped, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_graph_without_its_engine(tmp_path: Path, fake_bundle: MakeBundle) -> None:
    bundle = plan_bundle(tmp_path / "b", fake_bundle)
    files = {"other.engine": bundle.manifest.files["step.engine"]}
    bundle = replace(bundle, manifest=replace(bundle.manifest, files=files))
    with pytest.raises(UsageError, match="no engine of graph step"):
        export_triton(bundle, tmp_path / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_only_our_own_model_is_replaced(tmp_path: Path, fake_bundle: MakeBundle) -> None:
    bundle, out = plan_bundle(tmp_path / "b", fake_bundle), tmp_path / "models"
    export_triton(bundle, out)
    older = out / "mini-relative_step" / "1" / "model.plan"
    older.write_bytes(b"older")
    shutil.copytree(out / "mini-relative_step", out / "theirs")
    export_triton(bundle, out)
    assert sorted(path.name for path in out.iterdir()) == ["mini-relative_step", "theirs"]
    assert older.read_bytes() == b"plan"
    assert (out / "theirs" / "1" / "model.plan").read_bytes() == b"older"


@pytest.mark.parametrize("foreign", ["2/model.plan", "labels.txt", "config.pbtxt"])
def test_a_model_with_files_of_somebody_else_stays(
    foreign: str, tmp_path: Path, fake_bundle: MakeBundle
) -> None:
    bundle, out = plan_bundle(tmp_path / "b", fake_bundle), tmp_path / "models"
    export_triton(bundle, out)
    path = out / "mini-relative_step" / foreign
    path.parent.mkdir(exist_ok=True)
    path.write_text('name: "theirs"')
    with pytest.raises(UsageError, match=rf"mini-relative_step: .*{re.escape(foreign)}"):
        export_triton(bundle, out)
    assert path.read_text() == 'name: "theirs"'


def test_a_repository_needs_a_place_of_its_own(tmp_path: Path, fake_bundle: MakeBundle) -> None:
    bundle, out = plan_bundle(tmp_path / "b", fake_bundle), tmp_path / "models"
    export_triton(bundle, out)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a model repository"):
        export_triton(bundle, out)
    assert (out / "mine.txt").read_text() == "mine"


def test_graph_names_stay_inside_the_repository(tmp_path: Path, fake_bundle: MakeBundle) -> None:
    folder = fake_bundle(tmp_path / "b", graphs={"../up": GraphInfo((), ())})
    with pytest.raises(BundleError, match="not a plain name"):
        open_bundle(folder)
