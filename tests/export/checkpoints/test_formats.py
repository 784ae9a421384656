"""Every published layout of the same weights opens to the same tensors."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longlive_trt.configs import TextEncoderConfig, TransformerConfig, VaeConfig
from longlive_trt.errors import CheckpointError
from longlive_trt.export.checkpoints import pickles as checkpoint_pickles
from longlive_trt.export.checkpoints.opening import (
    Weights,
    open_text_encoder,
    open_transformer,
    open_vae,
    random_weights,
    write_safetensors,
)
from longlive_trt.export.models.text_encoder import TextEncoder
from longlive_trt.export.models.transformer import Transformer
from longlive_trt.export.models.vae import VaeDecoder

State = dict[str, Tensor]

TRANSFORMER = TransformerConfig(
    dim=24, heads=2, layers=2, ffn_dim=40, freq_dim=8, text_len=4, text_dim=20
)
VAE = VaeConfig(dim=4)
TEXT = TextEncoderConfig(
    vocab=30, dim=16, attention_dim=12, ffn_dim=20, heads=2, layers=2, max_distance=128
)
MODELS = {
    "transformer": (open_transformer, lambda: Transformer(TRANSFORMER)),
    "vae": (open_vae, lambda: VaeDecoder(VAE)),
    "text_encoder": (open_text_encoder, lambda: TextEncoder(TEXT)),
}


def shapes_of(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def random_state(model: nn.Module, seed: int = 0) -> State:
    weights = random_weights(shapes_of(model.state_dict()), seed)
    return {name: weights.load(name) for name in weights.names}


def assert_holds(weights: Weights, state: State) -> None:
    assert list(weights.names) == list(state)
    for name, tensor in state.items():
        loaded = weights.load(name)
        assert weights.shape(name) == tuple(tensor.shape) == tuple(loaded.shape)
        assert weights.dtype(name) == loaded.dtype == tensor.dtype
        assert torch.equal(loaded, tensor), name


def shard(folder: Path, stem: str, state: State, count: int) -> Path:
    names = list(state)
    parts = [names[part::count] for part in range(count)]
    file_of = {}
    for number, part in enumerate(parts, 1):
        file = f"{stem}-{number:05d}-of-{count:05d}.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        file_of |= dict.fromkeys(part, file)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": file_of}))
    return index


@pytest.fixture
def state() -> State:
    return random_state(Transformer(TRANSFORMER))


@pytest.mark.parametrize("entry", ["generator", "model", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "model.", "model._fsdp_wrapped_module."])
def test_pickled_transformer(tmp_path: Path, state: State, entry: str | None, prefix: str) -> None:
    stored = OrderedDict((prefix + name, tensor) for name, tensor in state.items())
    torch.save({entry: stored, "step": 7} if entry else stored, tmp_path / "base.pt")
    assert_holds(open_transformer(tmp_path / "base.pt", shapes_of(state)), state)


def test_wrappers_inside_names(tmp_path: Path, state: State) -> None:
    stored = {
        name.replace("blocks.1.", "blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module."): t
        for name, t in state.items()
    }
    torch.save({"generator": stored}, tmp_path / "base.pt")
    assert_holds(open_transformer(tmp_path / "base.pt", shapes_of(state)), state)


def test_ema_only_when_asked_for(tmp_path: Path, state: State) -> None:
    average = {name: tensor * 0.5 for name, tensor in state.items()}
    path, expected = tmp_path / "base.pt", shapes_of(state)
    torch.save(
        {
            "generator": {f"model.{name}": tensor for name, tensor in state.items()},
            "generator_ema": {
                f"model._fsdp_wrapped_module.{name}": tensor for name, tensor in average.items()
            },
        },
        path,
    )
    plain, ema = open_transformer(path, expected), open_transformer(path, expected, use_ema=True)
    assert_holds(plain, state)
    assert_holds(ema, average)
    assert plain.digest() != ema.digest()


def test_ema_that_is_not_there(tmp_path: Path, state: State) -> None:
    torch.save({"generator": state, "step": 3}, tmp_path / "base.pt")
    save_file(state, tmp_path / "base.safetensors")
    with pytest.raises(CheckpointError, match=r"no entry generator_ema; it holds generator, step"):
        open_transformer(tmp_path / "base.pt", shapes_of(state), use_ema=True)
    with pytest.raises(CheckpointError, match="has no EMA weights: ask for the plain ones"):
        open_transformer(tmp_path / "base.safetensors", shapes_of(state), use_ema=True)


def test_only_ema_is_there(tmp_path: Path, state: State) -> None:
    torch.save({"generator_ema": state}, tmp_path / "base.pt")
    with pytest.raises(CheckpointError, match=r"it holds generator_ema\. If these are EMA weights"):
        open_transformer(tmp_path / "base.pt", shapes_of(state))


@pytest.mark.parametrize("name", ["old.pt", "zipped.safetensors"])
def test_pickles_that_cannot_be_mapped(tmp_path: Path, state: State, name: str) -> None:
    torch.save(state, tmp_path / name, _use_new_zipfile_serialization=name != "old.pt")
    assert_holds(open_transformer(tmp_path / name, shapes_of(state)), state)


def test_views_of_one_storage(tmp_path: Path, state: State) -> None:
    flat = torch.cat([tensor.flatten() for tensor in state.values()])
    parts = flat.split([tensor.numel() for tensor in state.values()])
    stored = {
        name: part.view(tensor.shape)
        for part, (name, tensor) in zip(parts, state.items(), strict=True)
    }
    stored["head.head.weight"] = state["head.head.weight"].t().contiguous().t()
    torch.save(stored, tmp_path / "flat.pt")
    weights = open_transformer(tmp_path / "flat.pt", shapes_of(state))
    assert_holds(weights, state)
    assert weights.load("head.head.weight").is_contiguous()
    assert weights.load("head.head.bias").untyped_storage().nbytes() == 64 * 4


@pytest.mark.parametrize("component", list(MODELS))
def test_safetensors_single_and_sharded(tmp_path: Path, component: str) -> None:
    open_component, build = MODELS[component]
    state = random_state(build())
    save_file(state, tmp_path / "single.safetensors")
    assert_holds(open_component(tmp_path / "single.safetensors", shapes_of(state)), state)
    folder = tmp_path / "sharded"
    folder.mkdir()
    stem = "model" if component == "text_encoder" else "diffusion_pytorch_model"
    index = shard(folder, stem, state, 3)
    for path in (index, folder):
        assert_holds(open_component(path, shapes_of(state)), state)


@pytest.mark.parametrize("magic", [b"\x80\x02", b"\x80\x04", b"PK\x03\x04"])
def test_safetensors_that_begins_like_another_format(
    tmp_path: Path, state: State, magic: bytes
) -> None:
    """The first bytes are the header's length, which may happen to be another format's magic."""
    path = tmp_path / "base.safetensors"
    save_file(state, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    wanted = int.from_bytes(magic[:2] + (b"\x01" if magic[2:] == b"" else magic[2:]), "little")
    padded = raw[8 : 8 + length] + b" " * (wanted - length)
    path.write_bytes(len(padded).to_bytes(8, "little") + padded + raw[8 + length :])
    assert path.read_bytes().startswith(magic)
    assert_holds(open_transformer(path, shapes_of(state)), state)


def test_half_precision_is_kept(tmp_path: Path, state: State) -> None:
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    torch.save(half, tmp_path / "half.pt")
    for path in tmp_path.iterdir():
        assert_holds(open_transformer(path, shapes_of(state)), half)


def test_vae_without_its_encoder(tmp_path: Path) -> None:
    state = random_state(VaeDecoder(VAE))
    whole = {"encoder.conv1.weight": torch.zeros(4, 3, 3, 3, 3), "conv1.bias": torch.zeros(32)}
    torch.save(whole | state, tmp_path / "Wan2.1_VAE.pth")
    weights = open_vae(tmp_path / "Wan2.1_VAE.pth", shapes_of(state))
    assert_holds(weights, state)


def test_wan_folder_holds_all_components(tmp_path: Path, state: State) -> None:
    states = {name: random_state(build()) for name, (_, build) in MODELS.items()}
    (tmp_path / "config.json").write_text('{"dim": 24}')
    save_file(states["transformer"], tmp_path / "diffusion_pytorch_model.safetensors")
    torch.save(states["vae"], tmp_path / "Wan2.1_VAE.pth")
    torch.save(states["text_encoder"], tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    for name, (open_component, _) in MODELS.items():
        assert_holds(open_component(tmp_path, shapes_of(states[name])), states[name])


def test_folder_with_one_file_of_any_name(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "mine.pt")
    (tmp_path / "notes.txt").write_text("hello")
    assert_holds(open_transformer(tmp_path, shapes_of(state)), state)


def test_one_tensor_is_loaded_at_a_time(tmp_path: Path, state: State) -> None:
    """Overwriting all other bytes of the data does not disturb the one tensor that is read."""
    path = tmp_path / "base.safetensors"
    save_file(state, path)
    weights = open_transformer(path, shapes_of(state))
    wanted = "blocks.1.ffn.0.weight"
    raw = bytearray(path.read_bytes())
    begin = raw.index(state[wanted].numpy().tobytes())
    end = begin + state[wanted].nbytes
    data = 8 + int.from_bytes(raw[:8], "little")
    raw[data:begin], raw[end:] = b"\xff" * (begin - data), b"\xff" * (len(raw) - end)
    path.write_bytes(raw)
    assert torch.equal(weights.load(wanted), state[wanted])
    with pytest.raises(CheckpointError, match="NaN"):
        weights.load("blocks.0.ffn.0.weight")


def test_archives_stay_on_disk_until_loaded(tmp_path: Path, state: State) -> None:
    path = tmp_path / "base.pt"
    torch.save(state, path)
    weights = open_transformer(path, shapes_of(state))
    wanted = state["head.head.weight"].numpy().tobytes()
    raw = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(raw.index(wanted))
        file.write(bytes(len(wanted)))
    assert weights.load("head.head.weight").count_nonzero() == 0


def test_archives_are_reopened_to_release_pages(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_pickles, "_REOPEN_AFTER_BYTES", 20_000)
    torch.save({"generator": state}, tmp_path / "base.pt")
    weights = open_transformer(tmp_path / "base.pt", shapes_of(state))
    opened = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: opened.append(a) or load(*a, **k))
    assert_holds(weights, state)
    total = sum(tensor.nbytes for tensor in state.values())
    assert 2 <= len(opened) <= total // 20_000


def test_an_archive_that_changes_meanwhile(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_pickles, "_REOPEN_AFTER_BYTES", 0)
    path = tmp_path / "base.pt"
    torch.save(state, path)
    weights = open_transformer(path, shapes_of(state))
    weights.load("head.head.weight")
    torch.save({name: tensor[:1] for name, tensor in state.items()}, tmp_path / "other.pt")
    (tmp_path / "other.pt").replace(path)
    with pytest.raises(CheckpointError, match="changed while"):
        weights.load("head.head.weight")


def test_digest_follows_content_not_place(tmp_path: Path, state: State) -> None:
    expected = shapes_of(state)
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(state, first)
    second.write_bytes(first.read_bytes())
    digest = open_transformer(first, expected).digest()
    assert digest == open_transformer(second, expected).digest()
    save_file(random_state(Transformer(TRANSFORMER), seed=1), second)
    assert digest != open_transformer(second, expected).digest()


def test_written_file_reads_back(tmp_path: Path) -> None:
    state = {
        "a": torch.arange(3, dtype=torch.float16),
        "b": torch.randn(2, 3),
        "c": torch.randn(5).bfloat16(),
        "d": torch.tensor(2.0),
    }
    save_file(state, tmp_path / "in.safetensors")
    weights = open_transformer(tmp_path / "in.safetensors", shapes_of(state))
    write_safetensors(weights, tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    assert sorted(written) == sorted(state)
    assert all(torch.equal(written[name], state[name]) for name in state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors", "out.safetensors"]


def test_written_tensors_are_aligned(tmp_path: Path) -> None:
    state = {"a": torch.ones(3, dtype=torch.float16), "b": torch.ones(2)}
    torch.save(state, tmp_path / "in.pt")
    write_safetensors(
        open_transformer(tmp_path / "in.pt", shapes_of(state)), tmp_path / "out.safetensors"
    )
    raw = (tmp_path / "out.safetensors").read_bytes()
    data = 8 + int.from_bytes(raw[:8], "little")
    begins = {
        name: entry["data_offsets"][0]
        for name, entry in json.loads(raw[8:data]).items()
        if name in state
    }
    assert data % 8 == 0
    assert begins == {"b": 0, "a": 8}
