from pathlib import Path

import pytest

from longlive_trt.demo.training.legs import Worker
from longlive_trt.demo.training.vae import Leg, Settings


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
    second = run(tmp_path / "vae-state.pt")
    assert second.step > first.step > 0
    assert second.best > 8
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"vae.jsonl", "vae.png", "vae-psnr.png", "vae.safetensors", "vae-state.pt"}
