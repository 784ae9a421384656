from pathlib import Path

import pytest
from safetensors.torch import load_file

from longlive_trt.demo.autoencoder import Decoder
from longlive_trt.demo.geometry import light_vae_config, vae_config
from longlive_trt.demo.training.legs import Worker
from longlive_trt.demo.training.light import Leg, Settings


@pytest.mark.exhaustive
def test_a_leg_learns_and_the_next_one_goes_on(tmp_path: Path) -> None:
    def run(resume: Path | None) -> Leg:
        settings = Settings(
            out=tmp_path, leg_s=2.0, total_s=60.0, resume=resume, batch=1, frames=5, pool=4,
            held_out=1, held_out_frames=5, size=(16, 32), reports=1,
        )  # fmt: skip
        leg = Leg(settings, Worker.start("cpu", settings.seed))
        leg.run()
        return leg

    first = run(None)
    second = run(tmp_path / "light-state.pt")
    assert second.step > first.step > 0
    assert second.best > 8
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        "light.jsonl", "light.png", "light-psnr.png", "light_vae.safetensors", "light-state.pt"
    }  # fmt: skip
    kept = load_file(tmp_path / "light_vae.safetensors")
    assert kept.keys() == Decoder(light_vae_config()).state_dict().keys()


def test_it_is_of_the_latents_that_the_full_decoder_has() -> None:
    light, full = light_vae_config(), vae_config()
    assert (light.mean, light.std, light.channels) == (full.mean, full.std, full.channels)
