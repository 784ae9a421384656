"""``models``: a table for people, and the same for programs."""

import json
from typing import Any

from longlive_trt.cli import main
from longlive_trt.configs import shipped_models


def test_the_list(capsys: Any) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    for name in shipped_models():
        assert f"\n{name}: " in out
    assert "CC BY-NC-SA 4.0" in out and "--transformer checkpoints/self_forcing_dmd.pt --ema" in out


def test_as_json(capsys: Any) -> None:
    assert main(["models", "--json"]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert rows.keys() == set(shipped_models())
    frames = rows["causal-forcing-1.3b-frames-2"]
    assert (frames["frames_per_block"], frames["steps"], frames["window_frames"]) == (
        *(1, [1000, 500], -1),
    )
    assert len(frames["first_steps"]) == 4
    assert rows["wan-14b"]["weights"] > 14e9 and rows["wan-14b"]["cache_bytes"] > 15e9
