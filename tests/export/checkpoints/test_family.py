"""Files of the layouts in which the family's checkpoints are published."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from longlive_trt.configs import TransformerConfig
from longlive_trt.configs.family import family
from longlive_trt.errors import CheckpointError
from longlive_trt.export.checkpoints.opening import Weights, open_transformer, random_weights
from longlive_trt.export.models.transformer import Transformer

State = dict[str, Tensor]
SMALL = TransformerConfig(
    dim=24, heads=2, layers=2, ffn_dim=40, freq_dim=8, text_len=4, text_dim=20
)


@pytest.fixture(scope="module")
def state() -> State:
    shapes = {n: tuple(t.shape) for n, t in Transformer(SMALL).state_dict().items()}
    weights = random_weights(shapes, 3)
    return {name: weights.load(name) for name in weights.names}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def longlive(folder: Path, state: State) -> dict[str, object]:
    torch.save({"generator": prefixed(state, "model.")}, folder / "longlive_base.pt")
    module = "base_model.model.blocks.0.self_attn.q"
    adapter = {
        f"{module}.lora_A.weight": torch.ones(2, 24),
        f"{module}.lora_B.weight": torch.zeros(24, 2),
    }
    torch.save({"generator_lora": adapter, "critic_lora": adapter, "step": 1}, folder / "lora.pt")
    return {"path": folder / "longlive_base.pt", "lora": folder / "lora.pt"}


def averaged(folder: Path, state: State) -> dict[str, object]:
    """The moving average of a sharded run, alone."""
    torch.save({"generator_ema": prefixed(state, "model._fsdp_wrapped_module.")}, folder / "ema.pt")
    return {"path": folder / "ema.pt", "use_ema": True}


def both(folder: Path, state: State) -> dict[str, object]:
    """The average beside the plain weights, which are others."""
    other = {name: tensor + 1 for name, tensor in state.items()}
    stored = {"generator": prefixed(other, "model."), "generator_ema": prefixed(state, "model.")}
    torch.save({**stored, "step": 600}, folder / "both.pt")
    return {"path": folder / "both.pt", "use_ema": True}


def plain(folder: Path, state: State) -> dict[str, object]:
    torch.save({"generator": prefixed(state, "model.")}, folder / "model.pt")
    return {"path": folder / "model.pt"}


def shards(folder: Path, state: State) -> dict[str, object]:
    """Wan's own names, in several files."""
    files = {}
    for number, names in enumerate((list(state)[::2], list(state)[1::2]), 1):
        file = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in names}, folder / file)
        files |= dict.fromkeys(names, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return {"path": folder}


LAYOUTS: dict[str, list[Callable[[Path, State], dict[str, object]]]] = {
    "longlive-1.3b": [longlive],
    "longlive-1.3b-moving-sink": [longlive],
    "self-forcing-1.3b": [averaged, both],
    "self-forcing-1.3b-long": [averaged, both],
    "causal-forcing-1.3b": [averaged, both, plain],
    "causal-forcing-1.3b-frames-2": [averaged, both],
    "causal-forcing-1.3b-frames-1": [averaged, both],
    "causvid-1.3b": [plain],
    "wan-14b": [shards],
}


def test_every_member_has_a_layout() -> None:
    assert LAYOUTS.keys() == family().keys() - {"tiny"}


@pytest.mark.parametrize(
    "layout", sorted({f for made in LAYOUTS.values() for f in made}, key=lambda f: f.__name__)
)
def test_the_layout_opens(
    tmp_path: Path, state: State, layout: Callable[[Path, State], dict[str, object]]
) -> None:
    options = layout(tmp_path, state)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    weights: Weights = open_transformer(expected=shapes, **options)  # type: ignore[arg-type]
    assert list(weights.names) == list(state)
    assert all(torch.equal(weights.load(name), state[name]) for name in weights.names)


def test_an_average_alone_is_named_where_it_was_not_asked_for(tmp_path: Path, state: State) -> None:
    options = averaged(tmp_path, state)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match=r"it holds generator_ema.*\n?.*ask for EMA"):
        open_transformer(options["path"], shapes)  # type: ignore[arg-type]


def test_another_member_s_weights_say_their_size(tmp_path: Path, state: State) -> None:
    options = plain(tmp_path, state)
    wider = TransformerConfig(
        dim=48, heads=4, layers=2, ffn_dim=96, freq_dim=8, text_len=4, text_dim=20
    )
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in Transformer(wider).state_dict().items()}
    with pytest.raises(CheckpointError, match=r"of another size \(dim 24, expected 48"):
        open_transformer(options["path"], shapes)  # type: ignore[arg-type]
