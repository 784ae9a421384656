"""What is wrong with a checkpoint is said in one message, before any weight is read."""

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longlive_trt.configs import TransformerConfig
from longlive_trt.errors import CheckpointError, OutputError, UsageError
from longlive_trt.export.checkpoints.opening import (
    open_text_encoder,
    open_transformer,
    open_vae,
    random_weights,
    write_safetensors,
)
from longlive_trt.export.checkpoints.safetensors import SafetensorsFile
from longlive_trt.export.models.transformer import Transformer

State = dict[str, torch.Tensor]


def transformer_state(**changes: int) -> State:
    sizes = {"dim": 24, "heads": 2, "layers": 2, "ffn_dim": 40, "freq_dim": 8, "text_dim": 20}
    return Transformer(TransformerConfig(**(sizes | changes), text_len=4)).state_dict()


STATE = transformer_state()
EXPECTED = {name: tuple(tensor.shape) for name, tensor in STATE.items()}


def message_of(path: Path, **options: object) -> str:
    with pytest.raises(CheckpointError) as error:
        open_transformer(path, EXPECTED, **options)
    assert str(path.name) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("open_component", [open_transformer, open_vae, open_text_encoder])
def test_path_that_does_not_exist(tmp_path: Path, open_component: Callable[..., object]) -> None:
    (tmp_path / "longlive_base.pt").touch()
    with pytest.raises(UsageError, match=r"longlive_bas\.pt does not exist.*holds longlive_base"):
        open_component(tmp_path / "longlive_bas.pt", EXPECTED)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"GGUF\x03\x00\x00\x00" + bytes(40), "a GGUF file"),
        (b"\x1f\x8b\x08" + bytes(40), "gzip"),
        (b"weights?", "neither a PyTorch checkpoint"),
        (b'{"hello": 1}', "no index of shards"),
        (b'{"weight_map": {"a": "../a.safetensors"}}', "no index of shards"),
        (b'{"weight_map": ["a"]}', "no index of shards"),
        (b"PK\x03\x04" + bytes(60), "damaged, cut off"),
        (b"\x80\x02" + bytes(60), "damaged or cut-off pickle"),
        ((1000).to_bytes(8, "little") + b'{"a"', "ends inside its header"),
        ((4).to_bytes(8, "little") + b'{"a"', "header is not JSON"),
    ],
)
def test_files_of_another_format(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "base.pt").write_bytes(content)
    assert said in message_of(tmp_path / "base.pt")


@pytest.mark.parametrize("entry", [5, {}, {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}])
def test_safetensors_entries_that_make_no_sense(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert "damaged safetensors file" in message_of(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["archive", "pickle", "safetensors"])
def test_cut_off_files(tmp_path: Path, kind: str, kept: float) -> None:
    path = tmp_path / "base"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "archive")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert re.search("cut off|cut-off|ends inside", message_of(path))


def test_safetensors_is_not_read_past_a_later_truncation(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    save_file(STATE, path)
    weights = open_transformer(path, EXPECTED)
    path.write_bytes(path.read_bytes()[:-10_000])
    last = max(EXPECTED, key=lambda name: SafetensorsOrder(path).position(name))
    with pytest.raises(CheckpointError, match="ends inside its data"):
        weights.load(last)


class SafetensorsOrder:
    def __init__(self, path: Path) -> None:
        raw = path.read_bytes()
        self._header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])

    def position(self, name: str) -> int:
        return int(self._header[name]["data_offsets"][0])


class Trap:
    """Creates a folder when it is unpickled carelessly."""

    def __init__(self, bait: Path) -> None:
        self._bait = bait

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self._bait),)


@pytest.mark.parametrize("kind", ["archive", "old", "bare"])
def test_pickles_with_code_are_refused(tmp_path: Path, kind: str) -> None:
    bait, path = tmp_path / "executed", tmp_path / "base.pt"
    content = {"step": 1, "extra": Trap(bait)}
    if kind == "bare":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "archive")
    message = message_of(path)
    assert "Only tensors and plain containers" in message
    assert "a pickle that asks for posix.mkdir" in message
    assert not bait.exists()
    with path.open("rb") as file:
        torch.load(file, weights_only=False) if kind != "bare" else pickle.load(file)
    assert bait.exists(), "the trap itself does not work"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(2)], "holds a list"),
        (torch.zeros(2), "holds a Tensor"),
        ({}, "it holds nothing"),
        ({"optimizer": {"a": 1}, "step": 4}, "no entry generator or model or state_dict"),
        ({"generator": {"a": torch.zeros(2), "b": 3}}, "'b' is of type int"),
        ({"generator": {7: torch.zeros(2)}}, "7 is of type Tensor"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "sparse, quantized"),
        ({"a": torch.zeros(2, device="meta")}, "sparse, quantized"),
    ],
)
def test_pickles_without_a_state_dict(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "base.pt")
    assert said in message_of(tmp_path / "base.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_archive(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    assert "TorchScript" in message_of(tmp_path / "script.pt")


def test_missing_unknown_and_misshapen_tensors(tmp_path: Path) -> None:
    state = dict(STATE)
    del state["blocks.0.ffn.0.bias"]
    state["blocks.0.norm3.weight"] = torch.zeros(25)
    state["blocks.0.norm9.weight"] = torch.zeros(2, 3)
    save_file(state, tmp_path / "base.safetensors")
    lines = message_of(tmp_path / "base.safetensors").splitlines()
    assert lines[0].endswith("does not fit the transformer; tensors that differ: 3")
    assert lines[1:] == [
        "  blocks.0.ffn.0.bias: missing, expected [40]",
        "  blocks.0.norm3.weight: expected [24], found [25]",
        "  blocks.0.norm9.weight: unknown here, found [2, 3]",
        "It is a transformer of this size, but not a whole or unmodified one",
    ]


def test_nothing_of_the_model_is_said_in_one_line(tmp_path: Path) -> None:
    """Such as the first layer of an image model's decoder, by itself."""
    path = tmp_path / "stub.safetensors"
    stub = {"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3)}
    shapes = {"decoder.conv1.weight": (32, 16, 3, 3, 3), "conv2.bias": (16,)}
    for state, said in (
        (stub, "its only tensor, decoder.conv_in.weight, is none of its weights"),
        ({**stub, "a": torch.zeros(2)}, r"of its 2 tensors \(a, ...\) none is its weight"),
        ({"decoder.conv1.weight": torch.zeros(96, 16, 3, 3, 3)}, "its only tensor"),
    ):
        save_file(state, path)
        with pytest.raises(CheckpointError, match=said) as error:
            open_vae(path, shapes)
        assert "\n" not in str(error.value)


def test_first_ten_differences_by_name(tmp_path: Path) -> None:
    save_file({"patch_embedding.weight": STATE["patch_embedding.weight"]}, tmp_path / "a")
    lines = message_of(tmp_path / "a").splitlines()
    missing = sorted(set(EXPECTED) - {"patch_embedding.weight"})
    assert [line.split(":")[0].strip() for line in lines[1:11]] == missing[:10]
    assert lines[11] == f"  ... and {len(missing) - 10} more"


def test_transformer_of_another_size(tmp_path: Path) -> None:
    save_file(transformer_state(dim=40, layers=3), tmp_path / "14b.safetensors")
    message = message_of(tmp_path / "14b.safetensors")
    assert "of another size (dim 40, expected 24, layers 3, expected 2): check --config" in message


def test_image_to_video_transformer(tmp_path: Path) -> None:
    state = STATE | {"patch_embedding.weight": torch.zeros(24, 36, 1, 2, 2)}
    save_file(state, tmp_path / "i2v.safetensors")
    assert "channels 36, expected 16" in message_of(tmp_path / "i2v.safetensors")


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("blocks.0.self_attn.q.lora_A.weight", "--lora"),
        ("decoder.upsamples.0.residual.0.gamma", "--vae"),
        ("blocks.0.attn.q.weight", "--text-encoder"),
    ],
)
def test_other_files_under_transformer(tmp_path: Path, name: str, option: str) -> None:
    torch.save({f"model.{name}": torch.zeros(2)}, tmp_path / "other.pt")
    assert message_of(tmp_path / "other.pt").endswith(f"pass it as {option}")


def test_weights_of_something_else(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "resnet.safetensors")
    assert "no weights of a LongLive model" in message_of(tmp_path / "resnet.safetensors")


def test_quantized_weights(tmp_path: Path) -> None:
    name = "blocks.0.ffn.0.weight"
    save_file(STATE | {name: STATE[name].to(torch.float8_e4m3fn)}, tmp_path / "fp8.safetensors")
    assert f"{name}: stored as float8_e4m3fn" in message_of(tmp_path / "fp8.safetensors")


def test_the_same_tensor_with_and_without_prefix(tmp_path: Path) -> None:
    torch.save(STATE | {"model.head.head.bias": torch.ones(64)}, tmp_path / "base.pt")
    assert "head.head.bias: unknown here" in message_of(tmp_path / "base.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    name = "blocks.1.ffn.2.weight"
    state = {key: tensor.to(dtype, copy=True) for key, tensor in STATE.items()}
    state[name][3, 17] = value
    save_file(state, tmp_path / "base.safetensors")
    weights = open_transformer(tmp_path / "base.safetensors", EXPECTED)
    weights.load("blocks.0.ffn.2.weight")
    with pytest.raises(CheckpointError, match=rf"{name} in .*base\.safetensors holds NaN or inf"):
        weights.load(name)


def test_nothing_is_read_before_all_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {key: torch.full_like(tensor, float("nan")) for key, tensor in STATE.items()}
    save_file(broken, tmp_path / "base.safetensors")
    save_file({"blocks.0.ffn.0.lora_A.weight": torch.zeros(2, 9)}, tmp_path / "lora.safetensors")
    monkeypatch.setattr(SafetensorsFile, "read", lambda *_: pytest.fail("a weight was read"))
    open_transformer(tmp_path / "base.safetensors", EXPECTED)
    with pytest.raises(CheckpointError, match="has lora_A only"):
        open_transformer(
            tmp_path / "base.safetensors", EXPECTED, lora=tmp_path / "lora.safetensors"
        )


def test_folders_without_a_clear_choice(tmp_path: Path) -> None:
    assert "holds no weights for this" in message_of(tmp_path)
    for name in ("a.pt", "b.safetensors"):
        (tmp_path / name).touch()
    assert "several weight files: a.pt, b.safetensors" in message_of(tmp_path)


def test_index_and_shards_of_different_checkpoints(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}
    (tmp_path / "x.index.json").write_text(json.dumps(index))
    assert "promises tensors that its shards do not hold: b" in message_of(
        tmp_path / "x.index.json"
    )


def test_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    state = STATE | {"head.head.bias": torch.full((64,), float("nan"))}
    save_file(state, tmp_path / "base.safetensors")
    (tmp_path / "out.safetensors").write_bytes(b"older")
    weights = open_transformer(tmp_path / "base.safetensors", EXPECTED)
    with pytest.raises(CheckpointError, match=r"head\.head\.bias"):
        write_safetensors(weights, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == b"older"
    assert len(list(tmp_path.iterdir())) == 2


def test_write_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written \(No such file"):
        write_safetensors(random_weights({"a": (2,)}, 0), tmp_path / "nowhere" / "out.safetensors")
