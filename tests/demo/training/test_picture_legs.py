"""The legs of the autoencoder and of the light decoder, at a size that takes seconds."""

from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file

from longlive_trt.demo.autoencoder import Decoder
from longlive_trt.demo.geometry import light_vae_config, vae_config
from longlive_trt.demo.training import light, vae
from longlive_trt.demo.training.legs import Worker
from longlive_trt.demo.training.pictures import PictureLeg, picture_parser


@pytest.mark.exhaustive
@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("kind", [vae, light])
def test_a_leg_learns_and_the_next_one_goes_on(tmp_path: Path, kind: ModuleType) -> None:
    name = kind.Leg.name

    def run(resume: Path | None) -> PictureLeg:
        settings = kind.Settings(
            out=tmp_path, leg_s=2.0, total_s=60.0, resume=resume, batch=1, frames=5, pool=4,
            held_out=1, held_out_frames=5, size=(16, 32), reports=1,
        )  # fmt: skip
        leg: PictureLeg = kind.Leg(settings, Worker.start("cpu", settings.seed))
        leg.run()
        return leg

    first = run(None)
    second = run(tmp_path / f"{name}-state.pt")
    assert second.step > first.step > 0
    assert second.best > 8
    files = {path.name for path in tmp_path.iterdir()}
    kept = f"{kind.Leg.shipped_name}.safetensors"
    left = {f"{name}{end}" for end in (".jsonl", ".png", "-psnr.png", "-state.pt")}
    assert files >= {kept, *left}
    if kind is light:
        made = load_file(tmp_path / kept)
        assert made.keys() == Decoder(light_vae_config()).state_dict().keys()


def test_a_light_decoder_is_of_the_latents_that_the_full_one_has() -> None:
    light, full = light_vae_config(), vae_config()
    assert (light.mean, light.std, light.channels) == (full.mean, full.std, full.channels)


def test_the_size_of_clips_can_be_chosen() -> None:
    parser = picture_parser(None, vae.Settings)
    assert parser.parse_args(["--out", "x", "--size", "32x64"]).size == (32, 64)
    assert parser.parse_args(["--out", "x"]).size == vae.Settings.size
