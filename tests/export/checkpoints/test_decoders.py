"""Which decoder a file holds, and why another is refused."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longlive_trt.configs import TaehvConfig, VaeConfig
from longlive_trt.errors import CheckpointError
from longlive_trt.export.checkpoints.opening import open_taehv, recognized_decoder
from longlive_trt.export.models.taehv import TaehvDecoder
from longlive_trt.export.models.vae import VaeDecoder

WIDTHS = (8, 6, 4, 4)
TINY = TaehvDecoder(TaehvConfig(widths=WIDTHS)).state_dict()
ENCODER = {"encoder.0.weight": torch.ones(64, 3, 3, 3)}
SHAPES = {name: tuple(value.shape) for name, value in TINY.items()}

State = dict[str, torch.Tensor]


def stored(folder: Path, state: State, name: str = "file.safetensors") -> Path:
    path = folder / name
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


@pytest.mark.parametrize("name", ["taew2_1.safetensors", "taew2_1.pth", "file.safetensors"])
def test_a_tiny_decoder_is_known_by_its_tensors(tmp_path: Path, name: str) -> None:
    path = stored(tmp_path, {**TINY, **ENCODER}, name)
    facts = {"kind": "taehv", "latents": "normalized", "widths": list(WIDTHS)}
    assert recognized_decoder(path) == facts
    weights = open_taehv(path, SHAPES)
    assert weights.names == tuple(TINY)
    assert torch.equal(weights.load("decoder.22.bias"), TINY["decoder.22.bias"])


@pytest.mark.parametrize("name", ["lighttaew2_1.safetensors", "LightTAE.pth", "light-tae.pth"])
def test_a_name_tells_what_it_was_trained_on(tmp_path: Path, name: str) -> None:
    facts = recognized_decoder(stored(tmp_path, TINY, name))
    assert facts is not None and facts["latents"] == "raw"


def test_wans_own_is_known_with_its_width(tmp_path: Path) -> None:
    config = VaeConfig(dim=4, multipliers=(1, 1), res_blocks=1, temporal_upsample=(True,))
    path = stored(tmp_path, VaeDecoder(config).state_dict())
    assert recognized_decoder(path) == {"kind": "wan", "dim": 4}
    assert recognized_decoder(stored(tmp_path, {"blocks.0.self_attn.q.weight": torch.ones(1)})) is (
        None
    )


def like(**changes: tuple[int, ...]) -> State:
    names = {"first": "decoder.1.weight", "last": "decoder.22.bias", "zero": "decoder.0.weight"}
    return {**TINY, **{names[key]: torch.ones(shape) for key, shape in changes.items()}}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (like(zero=(8, 16, 3, 3)), "larger kind"),
        (like(first=(8, 48, 3, 3), last=(12,)), "48 channels, as of Wan 2.2 5B (taew2_2)"),
        (like(first=(8, 32, 3, 3), last=(12,)), "32 channels, as of HunyuanVideo 1.5"),
        (like(first=(8, 128, 3, 3), last=(48,)), "128 channels, as of LTX-Video"),
        (like(first=(8, 4, 3, 3)), "4 channels, as of images"),
        (like(first=(8, 7, 3, 3)), "7 channels"),
        (like(last=(12,)), "patches of 2 x 2 pixels"),
        ({"decoder.1.weight": torch.ones(8, 16, 3, 3)}, "no whole TAEHV decoder"),
        ({"decoder.layers.0.weight": torch.ones(8, 16, 3, 3)}, "AutoencoderTiny"),
        (
            {
                "decoder.up_blocks.0.resnets.0.conv1.weight": torch.ones(4, 4, 3, 3),
                "decoder.conv_in.weight": torch.ones(4, 4, 3, 3),
            },
            "an image model's VAE",
        ),
        (
            {
                "decoder.upsamples.0.upsamples.0.residual.2.weight": torch.ones(4, 4, 3, 3, 3),
                "conv2.weight": torch.ones(48, 48, 1, 1, 1),
            },
            "VAE of Wan 2.2",
        ),
    ],
)
def test_other_models_decoders_are_refused(tmp_path: Path, state: State, words: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        recognized_decoder(stored(tmp_path, state))
    message = str(refusal.value)
    assert words in message and "what fits: Wan 2.1's VAE" in message and "\n" not in message


def test_a_namesake_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        recognized_decoder(stored(tmp_path, TINY, "taecvx.pth"))
    assert "a decoder for CogVideoX" in caplog.text


def test_what_makes_more_frames_gives_its_last_ones(tmp_path: Path) -> None:
    fewer = TaehvDecoder(TaehvConfig(widths=WIDTHS, temporal_upsample=(False, True, False)))
    shapes = {name: tuple(value.shape) for name, value in fewer.state_dict().items()}
    path = stored(tmp_path, TINY)
    whole, cut = open_taehv(path, SHAPES), open_taehv(path, shapes)
    name = "decoder.19.conv.weight"
    assert cut.shape(name) == shapes[name]
    assert torch.equal(cut.load(name), whole.load(name)[-shapes[name][0] :])
    assert cut.digest() != whole.digest()
    assert torch.equal(cut.load("decoder.20.weight"), whole.load("decoder.20.weight"))


def test_a_tensor_that_is_missing_or_of_another_size_is_named(tmp_path: Path) -> None:
    rest = {name: value for name, value in TINY.items() if name != "decoder.4.conv.2.weight"}
    with pytest.raises(CheckpointError, match=r"decoder\.4\.conv\.2\.weight: missing"):
        open_taehv(stored(tmp_path, rest), SHAPES)
    # Twice as many rows are more frames of what makes frames, and a mistake elsewhere.
    wider = {**TINY, "decoder.8.weight": torch.ones(12, 8, 3, 3)}
    with pytest.raises(CheckpointError, match=r"decoder\.8\.weight: expected \[6, 8, 3, 3\]"):
        open_taehv(stored(tmp_path, wider), SHAPES)
