"""Replay files: golden results, and files that are not taken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.dump import config_values
from tests.commands.running import GOLDEN, OUT, generate_latents, succeeds

Error = Callable[[object, object], float]
Refused = Callable[..., str]

pytestmark = pytest.mark.usefixtures("in_empty_folder")

# ---- golden results --------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["noswitch", "switch15_global_sink", "switch6"])
def test_golden_replays(
    golden_bundle_fp32: Path, golden_bundle_fp16: Path, relative_error: Error, case: str
) -> None:
    expected = load_file(GOLDEN / f"{case}.expected.safetensors")["latents"]
    replay = ("--replay", GOLDEN / f"{case}.replay.safetensors")
    exact = generate_latents(golden_bundle_fp32, *replay)
    assert (exact.dtype, exact.shape) == (np.float32, expected.shape)
    assert relative_error(exact, expected) <= 1e-5
    half = generate_latents(golden_bundle_fp16, *replay)
    assert 1e-5 < relative_error(half, expected) <= 5e-3


@pytest.fixture(scope="session")
def lora_bundle(make_once: Any, golden_config: ModelConfig) -> Path:
    def make(folder: Path) -> None:
        exported, config = folder.with_name("lora-export"), folder.with_name("golden.json")
        config.write_text(json.dumps(config_values(golden_config)))
        checkpoints = ("--transformer", GOLDEN / "transformer.safetensors")
        lora = ("--lora", GOLDEN / "lora.safetensors")
        succeeds("export", "--config", config, *checkpoints, *lora, "--no-check", "--out", exported)
        succeeds("build", "--onnx", exported, "--out", folder)

    return make_once("lora-bundle", make)


@pytest.mark.exhaustive
def test_golden_lora(lora_bundle: Path, golden_bundle_fp32: Path, relative_error: Error) -> None:
    expected = load_file(GOLDEN / "lora.expected.safetensors")["latents"]
    replay = ("--replay", GOLDEN / "lora.replay.safetensors")
    assert relative_error(generate_latents(lora_bundle, *replay), expected) <= 1e-5
    assert relative_error(generate_latents(golden_bundle_fp32, *replay), expected) > 1e-3


# ---- generate: replay files ------------------------------------------------------------------


def replay_tensors() -> dict[str, Any]:
    return {
        "noise": np.zeros((1, 3, 16, 8, 12), np.float32),
        "renoise": np.zeros((1, 3, 1, 3, 16, 8, 12), np.float32),
        "prompt.0": np.zeros((1, 16, 64), np.float32),
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"noise": None}, ("tensor noise is missing",)),
        ({"renoise": None}, ("tensor renoise is missing",)),
        ({"prompt.0": None}, ("tensor prompt.0 is missing",)),
        ({"noise": np.zeros(4)}, ("noise is [4]",)),
        ({"noise": np.zeros(())}, ("noise is []",)),
        ({"noise": np.zeros((0, 3, 16, 8, 12))}, ("noise is [0, 3",)),
        ({"noise": np.zeros((1, 0, 16, 8, 12))}, ("0 frames",)),
        ({"noise": np.zeros((1, 4, 16, 8, 12))}, ("4 frames", "blocks of 3")),
        ({"noise": np.zeros((1, 3, 16, 8, 10))}, ("noise is [1, 3, 16, 8, 10]", "8, 12]")),
        ({"renoise": np.zeros((1, 2, 1, 3, 16, 8, 12))}, ("renoise is [1, 2",)),
        ({"renoise": np.zeros((1, 3, 2, 3, 16, 8, 12))}, ("renoise is [1, 3, 2",)),
        ({"renoise": np.zeros(())}, ("renoise is []",)),
        ({"prompt.0": np.zeros((1, 16, 63))}, ("prompt.0 is [1, 16, 63]",)),
        ({"prompt.0": np.zeros((3, 16, 64))}, ("prompt.0 is [3, 16, 64]",)),
        ({"prompt.0": np.zeros(())}, ("prompt.0 is []",)),
        ({"noise": np.full((1, 3, 16, 8, 12), np.nan)}, ("noise holds NaN",)),
        ({"prompt.0": np.full((1, 16, 64), np.inf)}, ("prompt.0 holds NaN",)),
    ],
)
def test_broken_replay_tensors(
    golden_bundle_fp32: Path, refused: Refused, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    tensors = {**replay_tensors(), **changes}
    tensors = {k: v.astype(np.float32) for k, v in tensors.items() if v is not None}
    save_file(tensors, "r.safetensors", {"schedule": '[{"frame": 0, "prompt": 0}]'})
    arguments = ("--bundle", golden_bundle_fp32, "--replay", "r.safetensors", *OUT)
    refused("generate", *arguments, words=("r.safetensors", *words))


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (None, ("schedule", "missing")),
        ("", ("schedule", "JSON")),
        ("{", ("schedule", "JSON")),
        ("5", ("schedule", "JSON")),
        ("[]", ("begin with frame 0",)),
        ('{"frame": 0, "prompt": 0}', ("schedule", "JSON")),
        ('[{"frame": 0}]', ("schedule", "JSON")),
        ('[{"frame": "0", "prompt": 0}]', ("schedule", "JSON")),
        ('[{"frame": 0.0, "prompt": 0}]', ("schedule", "JSON")),
        ('[{"frame": Infinity, "prompt": 0}]', ("schedule", "JSON")),
        ('[{"frame": 3, "prompt": 0}]', ("begin with frame 0",)),
        ('[{"frame": -3, "prompt": 0}]', ("begin with frame 0",)),
        ('[{"frame": 0, "prompt": 1}]', ("prompt.1", "not in the file")),
        (
            '[{"frame": 0, "prompt": 0}, {"frame": 6, "prompt": 0}, {"frame": 3, "prompt": 0}]',
            ("frame 3 comes after frame 6",),
        ),
    ],
)
def test_broken_replay_schedules(
    golden_bundle_fp32: Path, refused: Refused, schedule: str | None, words: tuple[str, ...]
) -> None:
    metadata = None if schedule is None else {"schedule": schedule}
    save_file(replay_tensors(), "r.safetensors", metadata)
    arguments = ("--bundle", golden_bundle_fp32, "--replay", "r.safetensors", *OUT)
    refused("generate", *arguments, words=("r.safetensors", *words))


def test_a_replay_file_that_is_cut_short_or_something_else(
    golden_bundle_fp32: Path, refused: Refused
) -> None:
    whole = (GOLDEN / "switch6.replay.safetensors").read_bytes()
    for content in (b"", b"junk", whole[:1000], whole[:-1]):
        Path("r.safetensors").write_bytes(content)
        arguments = ("--bundle", golden_bundle_fp32, "--replay", "r.safetensors", *OUT)
        refused("generate", *arguments, words=("r.safetensors", "safetensors file"))


def test_a_replay_tensor_of_another_name_does_no_harm(golden_bundle_fp32: Path) -> None:
    tensors = {**replay_tensors(), "prompt.\u00b2": np.zeros(1, np.float32)}
    save_file(tensors, "r.safetensors", {"schedule": '[{"frame": 0, "prompt": 0}]'})
    assert generate_latents(golden_bundle_fp32, "--replay", "r.safetensors").shape[1] == 3
