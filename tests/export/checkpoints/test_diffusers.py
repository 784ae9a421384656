"""Folders that Diffusers and Transformers themselves save open to the weights of our models."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longlive_trt.configs import TextEncoderConfig, TransformerConfig, VaeConfig
from longlive_trt.errors import CheckpointError
from longlive_trt.export.checkpoints.diffusers_keys import (
    text_encoder_key,
    transformer_key,
    vae_key,
)
from longlive_trt.export.checkpoints.opening import (
    Weights,
    open_text_encoder,
    open_transformer,
    open_vae,
    open_vae_encoder,
)
from longlive_trt.export.models.text_encoder import TextEncoder
from longlive_trt.export.models.transformer import Transformer
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.export.models.vae_encoder import VaeEncoder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    import transformers

pytestmark = pytest.mark.filterwarnings("ignore")

TRANSFORMER = Transformer(
    TransformerConfig(dim=24, heads=2, layers=2, ffn_dim=40, freq_dim=8, text_len=4, text_dim=20)
)
VAE = VaeDecoder(VaeConfig(dim=8))
VAE_ENCODER = VaeEncoder(VaeConfig(dim=8))
TEXT = TextEncoder(
    TextEncoderConfig(
        vocab=30, dim=16, attention_dim=16, ffn_dim=20, heads=2, layers=2, max_distance=128
    )
)
Opener = Callable[..., Weights]


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root; the transformer is sharded."""
    root = tmp_path_factory.mktemp("Wan2.1-T2V-1.3B-Diffusers")
    torch.manual_seed(0)
    transformer().save_pretrained(root / "transformer", max_shard_size="20KB")
    vae().save_pretrained(root / "vae")
    text_encoder().save_pretrained(root / "text_encoder")
    (root / "model_index.json").write_text("{}")
    return root


def transformer() -> torch.nn.Module:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        ffn_dim=40,
        freq_dim=8,
        text_dim=20,
        in_channels=16,
        out_channels=16,
    )


def vae() -> torch.nn.Module:
    return diffusers.AutoencoderKLWan(base_dim=8)


def text_encoder() -> transformers.UMT5EncoderModel:
    config = transformers.UMT5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=20, num_heads=2, num_layers=2
    )
    return transformers.UMT5EncoderModel(config)


CASES = [
    ("transformer", open_transformer, TRANSFORMER, transformer_key),
    ("vae", open_vae, VAE, vae_key),
    ("vae", open_vae_encoder, VAE_ENCODER, vae_key),
    ("text_encoder", open_text_encoder, TEXT, text_encoder_key),
]


@pytest.mark.parametrize(("name", "open_component", "model", "key_of"), CASES)
@pytest.mark.parametrize("at_root", [True, False])
def test_folders(
    root: Path,
    name: str,
    open_component: Opener,
    model: torch.nn.Module,
    key_of: Callable[[str], str | None],
    at_root: bool,
) -> None:
    weights = open_component(root if at_root else root / name, shapes_of(model))
    torch.manual_seed(0)
    saved = {build.__name__: build().state_dict() for build in (transformer, vae, text_encoder)}
    expected = shapes_of(model)
    known = {key_of(key): t for key, t in saved[name].items() if key_of(key) in expected}
    assert sorted(weights.names) == sorted(known)
    for weight in weights.names:
        assert torch.equal(weights.load(weight), known[weight]), weight
    model.load_state_dict({weight: weights.load(weight) for weight in weights.names}, strict=True)


def test_the_transformer_is_sharded(root: Path) -> None:
    assert len(list((root / "transformer").glob("*.safetensors"))) > 2


def test_embedding_stored_under_both_names(tmp_path: Path) -> None:
    state = text_encoder().state_dict()
    assert {"shared.weight", "encoder.embed_tokens.weight"} <= state.keys()
    torch.save({**state, "decoder.final_layer_norm.weight": torch.ones(16)}, tmp_path / "t5.pt")
    weights = open_text_encoder(tmp_path / "t5.pt", shapes_of(TEXT))
    assert torch.equal(weights.load("token_embedding.weight"), state["shared.weight"])


def test_one_shard_alone(root: Path) -> None:
    first = sorted((root / "transformer").glob("*-00001-of-*.safetensors"))[0]
    with pytest.raises(CheckpointError, match="one shard of several"):
        open_transformer(first, shapes_of(TRANSFORMER))


def test_shard_that_is_missing(root: Path, tmp_path: Path) -> None:
    index = next((root / "transformer").glob("*.index.json"))
    (tmp_path / index.name).write_bytes(index.read_bytes())
    with pytest.raises(CheckpointError, match=r"names shards that are not beside it: diffusion_py"):
        open_transformer(tmp_path, shapes_of(TRANSFORMER))


def test_shard_of_another_component(root: Path, tmp_path: Path) -> None:
    shard = tmp_path / "model-00001-of-00002.safetensors"
    shard.write_bytes((root / "text_encoder" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="pass it as --text-encoder"):
        open_transformer(shard, shapes_of(TRANSFORMER))


def test_component_under_the_wrong_option(root: Path) -> None:
    for wrong, option in (("vae", "--vae"), ("text_encoder", "--text-encoder")):
        file = next((root / wrong).glob("*.safetensors"))
        with pytest.raises(CheckpointError, match=rf"It is a .*: pass it as {option}"):
            open_transformer(file, shapes_of(TRANSFORMER))
    with pytest.raises(CheckpointError, match="It is a transformer: pass it as --transformer"):
        open_vae(next((root / "transformer").glob("*.index.json")), shapes_of(VAE))
