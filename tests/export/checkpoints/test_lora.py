"""LoRA adapters in every layout, the scale they ask for, and those that do not fit."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longlive_trt.configs import TransformerConfig
from longlive_trt.errors import CheckpointError, UsageError
from longlive_trt.export.checkpoints.opening import (
    open_transformer,
    random_weights,
    write_safetensors,
)
from longlive_trt.export.models.transformer import Transformer

State = dict[str, torch.Tensor]

EXPECTED = {
    name: tuple(tensor.shape)
    for name, tensor in Transformer(
        TransformerConfig(
            dim=24, heads=2, layers=2, ffn_dim=40, freq_dim=8, text_len=4, text_dim=20
        )
    )
    .state_dict()
    .items()
}
BASE = random_weights(EXPECTED, 0)
STATE = {name: BASE.load(name) for name in BASE.names}
MODULES = [
    name.removesuffix(".weight")
    for name, shape in EXPECTED.items()
    if name.startswith("blocks.") and len(shape) == 2
]
RANK = 4


def adapter() -> State:
    shapes = {}
    for module in MODULES:
        out_features, in_features = EXPECTED[f"{module}.weight"]
        shapes[f"base_model.model.{module}.lora_A.weight"] = (RANK, in_features)
        shapes[f"base_model.model.{module}.lora_B.weight"] = (out_features, RANK)
    weights = random_weights(shapes, 1)
    return {name: weights.load(name) for name in weights.names}


def delta(state: State, module: str) -> torch.Tensor:
    (a,) = (state[name] for name in state if f"{module}.lora_A" in name)
    (b,) = (state[name] for name in state if f"{module}.lora_B" in name)
    return b.double() @ a.double()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_file(STATE, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def assert_merged(base: Path, lora: Path, scale: float, alpha: float | None = None) -> None:
    merged = open_transformer(base, EXPECTED, lora=lora, lora_alpha=alpha)
    state = adapter()
    assert list(merged.names) == list(EXPECTED)
    assert sorted(merged.adapted_modules) == sorted(MODULES)
    for name in EXPECTED:
        expected = STATE[name].double()
        if name.removesuffix(".weight") in MODULES and name.endswith(".weight"):
            expected = expected + scale * delta(state, name.removesuffix(".weight"))
            assert not torch.allclose(merged.load(name).double(), STATE[name].double(), atol=1e-3)
        torch.testing.assert_close(merged.load(name).double(), expected, rtol=1e-6, atol=1e-6)


def refusal(base: Path, lora: Path, alpha: float | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        open_transformer(base, EXPECTED, lora=lora, lora_alpha=alpha)
    assert str(lora) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("entry", ["generator_lora", None])
def test_pickled_adapter_has_scale_one(base: Path, tmp_path: Path, entry: str | None) -> None:
    critic = {name: tensor * 9 for name, tensor in adapter().items()}
    content = {"critic_lora": critic, entry: adapter(), "step": 5} if entry else adapter()
    torch.save(content, tmp_path / "lora.pt")
    for lora in (tmp_path / "lora.pt", tmp_path):
        assert_merged(base, lora, scale=1)


@pytest.mark.parametrize("prefix", ["base_model.model.", "", "base_model.model.model."])
@pytest.mark.parametrize("suffix", ["", ".default"])
def test_peft_names(base: Path, tmp_path: Path, prefix: str, suffix: str) -> None:
    renamed = {
        name.replace("base_model.model.", prefix).replace(".weight", f"{suffix}.weight"): tensor
        for name, tensor in adapter().items()
    }
    save_file(renamed, tmp_path / "lora.safetensors")
    assert_merged(base, tmp_path / "lora.safetensors", scale=1)


@pytest.mark.parametrize(
    ("option", "config", "metadata", "scale"),
    [
        (None, None, None, 1),
        (None, None, 8, 2),
        (None, 12, 8, 3),
        (2, 12, 8, 0.5),
        (2, None, None, 0.5),
    ],
)
def test_alpha_option_over_config_over_metadata(
    base: Path,
    tmp_path: Path,
    option: float | None,
    config: float | None,
    metadata: float | None,
    scale: float,
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    extra = {"alpha": str(metadata), "rank": str(RANK)} if metadata else None
    save_file(adapter(), folder / "adapter_model.safetensors", metadata=extra)
    if config:
        settings = {"r": RANK, "lora_alpha": config, "use_dora": False, "rank_pattern": {}}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    for lora in (folder, folder / "adapter_model.safetensors"):
        assert_merged(base, lora, scale, option)


def test_golden_adapter_asks_for_scale_two() -> None:
    data = Path(__file__).parents[2] / "data" / "transformer"
    state, lora = load_file(data / "transformer.safetensors"), load_file(data / "lora.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    merged = open_transformer(
        data / "transformer.safetensors", shapes, lora=data / "lora.safetensors"
    )
    assert len(merged.adapted_modules) == 20
    for module in merged.adapted_modules:
        name = f"{module}.weight"
        expected = state[name].double() + 2 * delta(lora, module)
        torch.testing.assert_close(merged.load(name).double(), expected, rtol=1e-6, atol=1e-6)


def test_report(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(adapter(), tmp_path / "lora.safetensors")
    with caplog.at_level(logging.INFO, logger="longlive_trt.export"):
        open_transformer(base, EXPECTED, lora=tmp_path / "lora.safetensors")
    (line,) = (r.getMessage() for r in caplog.records if "adapted" in r.getMessage())
    assert "rank 4, alpha from none is given, so the rank, scale 1; 20 modules adapted" in line
    assert "blocks.*.ffn.2, blocks.*.self_attn.k" in line


def test_adapter_for_some_modules(base: Path, tmp_path: Path) -> None:
    some = {name: tensor for name, tensor in adapter().items() if "blocks.1.ffn.0" in name}
    save_file(some, tmp_path / "lora.safetensors")
    merged = open_transformer(base, EXPECTED, lora=tmp_path / "lora.safetensors")
    assert merged.adapted_modules == ("blocks.1.ffn.0",)
    changed = [name for name in EXPECTED if not torch.equal(merged.load(name), STATE[name])]
    assert changed == ["blocks.1.ffn.0.weight"]


def test_half_precision_is_merged_in_float32(tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in STATE.items()}
    lora = {name: tensor.bfloat16() for name, tensor in adapter().items()}
    save_file(half, tmp_path / "base.safetensors")
    save_file(lora, tmp_path / "lora.safetensors")
    merged = open_transformer(
        tmp_path / "base.safetensors", EXPECTED, lora=tmp_path / "lora.safetensors"
    )
    name = "blocks.0.ffn.2.weight"
    assert merged.dtype(name) == merged.load(name).dtype == torch.float32
    expected = half[name].double() + delta(lora, "blocks.0.ffn.2")
    torch.testing.assert_close(merged.load(name).double(), expected, rtol=1e-6, atol=1e-6)
    bias = merged.load("blocks.0.ffn.2.bias")
    assert bias.dtype == merged.dtype("blocks.0.ffn.2.bias") == torch.bfloat16


def test_merged_file_reads_back(base: Path, tmp_path: Path) -> None:
    save_file(adapter(), tmp_path / "lora.safetensors")
    merged = open_transformer(base, EXPECTED, lora=tmp_path / "lora.safetensors")
    write_safetensors(merged, tmp_path / "merged.safetensors")
    written = open_transformer(tmp_path / "merged.safetensors", EXPECTED)
    assert all(torch.equal(written.load(name), merged.load(name)) for name in EXPECTED)


def test_digest_follows_adapter_and_scale(base: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file(adapter(), lora)
    plain = open_transformer(base, EXPECTED)
    merged = open_transformer(base, EXPECTED, lora=lora)
    again = open_transformer(base, EXPECTED, lora=lora, lora_alpha=RANK)
    doubled = open_transformer(base, EXPECTED, lora=lora, lora_alpha=2 * RANK)
    assert merged.digest() == again.digest()
    assert len({plain.digest(), merged.digest(), doubled.digest()}) == 3


def test_adapter_for_another_width(base: Path, tmp_path: Path) -> None:
    wide = {
        name: torch.zeros([40 if size == 24 else size for size in tensor.shape])
        for name, tensor in adapter().items()
        if "attn.q" in name
    }
    save_file(wide, tmp_path / "wide.safetensors")
    message = refusal(base, tmp_path / "wide.safetensors")
    assert "a model of another size: none of its 4 modules fits" in message
    assert (
        "blocks.0.cross_attn.q: made for a weight of [40, 40], the model's is [24, 24]" in message
    )


def test_adapter_for_more_layers(base: Path, tmp_path: Path) -> None:
    deep = {name.replace("blocks.1.", "blocks.7."): t for name, t in adapter().items()}
    save_file(deep, tmp_path / "deep.safetensors")
    message = refusal(base, tmp_path / "deep.safetensors")
    assert "modules that differ: 10 of 20" in message
    assert "  blocks.7.cross_attn.k: the model has no such module" in message


def test_ranks_that_disagree(base: Path, tmp_path: Path) -> None:
    state = adapter()
    state["base_model.model.blocks.0.ffn.0.lora_B.weight"] = torch.zeros(40, 3)
    save_file(state, tmp_path / "lora.safetensors")
    message = refusal(base, tmp_path / "lora.safetensors")
    assert "blocks.0.ffn.0: lora_A is of rank 4, lora_B of rank 3" in message


def test_rank_other_than_announced(base: Path, tmp_path: Path) -> None:
    save_file(adapter(), tmp_path / "lora.safetensors", metadata={"rank": "16", "alpha": "16"})
    message = refusal(base, tmp_path / "lora.safetensors")
    assert "20 of 20" in message
    assert "is of rank 4, but the adapter's settings say 16" in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("base_model.model.blocks.0.ffn.0.alpha", "not a LoRA tensor"),
        ("base_model.model.blocks.0.ffn.0.lora_magnitude_vector", "not a LoRA tensor"),
        ("base_model.model.blocks.0.ffn.0.lora_A.other.weight", "a second adapter"),
        ("base_model.model.blocks.0.ffn.9.lora_A.weight", "has lora_A only"),
        ("base_model.model.patch_embedding.lora_B.weight", "has lora_B only"),
    ],
)
def test_entries_that_cannot_be_merged(base: Path, tmp_path: Path, name: str, said: str) -> None:
    save_file(adapter() | {name: torch.zeros(4, 24)}, tmp_path / "lora.safetensors")
    message = refusal(base, tmp_path / "lora.safetensors")
    assert "entries not as expected: 1\n" in message
    assert said in message


def test_convolutions_are_not_adapted(base: Path, tmp_path: Path) -> None:
    state = {
        "patch_embedding.lora_A.weight": torch.zeros(4, 16, 1, 2, 2),
        "patch_embedding.lora_B.weight": torch.zeros(24, 4, 1, 1, 1),
    }
    save_file(state, tmp_path / "lora.safetensors")
    assert "only matrices can be adapted" in refusal(base, tmp_path / "lora.safetensors")


def test_something_else_as_adapter(base: Path, tmp_path: Path) -> None:
    assert refusal(base, base).endswith("It is a transformer: pass it as --transformer")
    torch.save({"critic_lora": adapter(), "step": 1}, tmp_path / "lora.pt")
    message = refusal(base, tmp_path / "lora.pt")
    assert "no entry generator_lora; it holds critic_lora, step" in message


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("[1]", "not a JSON object"),
        ("{", "not a JSON object"),
        ('{"use_dora": true}', "sets use_dora"),
        ('{"alpha_pattern": {"ffn.0": 2}}', "sets alpha_pattern"),
    ],
)
def test_adapter_settings(base: Path, tmp_path: Path, settings: str, said: str) -> None:
    save_file(adapter(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(settings)
    with pytest.raises(CheckpointError, match=said):
        open_transformer(base, EXPECTED, lora=tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize("alpha", ["eight", "nan"])
def test_alpha_that_is_no_number(base: Path, tmp_path: Path, alpha: str) -> None:
    save_file(adapter(), tmp_path / "lora.safetensors", metadata={"alpha": alpha})
    assert f"the alpha '{alpha}' is not a number" in refusal(base, tmp_path / "lora.safetensors")


def test_wrong_use(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_transformer(base, EXPECTED, lora=tmp_path / "nowhere.pt")
    with pytest.raises(UsageError, match="without a LoRA adapter"):
        open_transformer(base, EXPECTED, lora_alpha=2)
    with pytest.raises(UsageError, match="finite number"):
        open_transformer(base, EXPECTED, lora=base, lora_alpha=float("nan"))


def test_adapter_that_is_not_finite(base: Path, tmp_path: Path) -> None:
    state = adapter()
    state["base_model.model.blocks.0.ffn.0.lora_B.weight"][1, 1] = float("inf")
    save_file(state, tmp_path / "lora.safetensors")
    merged = open_transformer(base, EXPECTED, lora=tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"ffn\.0\.lora_B\.weight in .*holds NaN or inf"):
        merged.load("blocks.0.ffn.0.weight")


def test_merge_that_overflows(base: Path, tmp_path: Path) -> None:
    save_file({name: t * 1e30 for name, t in adapter().items()}, tmp_path / "lora.safetensors")
    merged = open_transformer(base, EXPECTED, lora=tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks\.0\.ffn\.0\.weight with its LoRA adapter"):
        merged.load("blocks.0.ffn.0.weight")
