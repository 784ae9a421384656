"""``build --lora-ready`` and ``generate --lora`` as a user runs them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.matrices import MATRICES_NAME
from tests.commands.running import ONE_BLOCK, OUT, PROMPT, generate_latents, succeeds

Refused = Callable[..., str]
Ready = Callable[[str], Path]

pytestmark = pytest.mark.usefixtures("in_empty_folder")


def write_adapter(path: str, width: int = 36) -> str:
    stem = "base_model.model.blocks.0.self_attn.q"
    sides = {"A": np.ones((2, width), np.float32), "B": np.ones((width, 2), np.float32)}
    save_file({f"{stem}.lora_{side}.weight": values for side, values in sides.items()}, path)
    return path


def test_a_bundle_is_built_for_it(mini_bundle: Callable[[str], Path]) -> None:
    exported = mini_bundle("relative").with_name("mini-relative-export")
    succeeds("build", "--onnx", exported, "--lora-ready", "--out", "b")
    manifest = open_bundle(Path("b")).manifest
    assert manifest.options["lora_ready"] is True and MATRICES_NAME in manifest.files
    assert manifest.key != open_bundle(mini_bundle("relative")).manifest.key


def test_a_video_with_an_adapter_says_which(lora_ready_bundle: Ready, capsys: Any) -> None:
    bundle = lora_ready_bundle("fp32")
    write_adapter("a.safetensors")
    plain = generate_latents(bundle, *PROMPT, *ONE_BLOCK)
    adapted = generate_latents(bundle, *PROMPT, *ONE_BLOCK, "--lora", "a.safetensors:0.5")
    assert not np.array_equal(adapted, plain)
    assert np.array_equal(
        generate_latents(bundle, *PROMPT, *ONE_BLOCK, "--lora", "a.safetensors:0"), plain
    )
    arguments = ("--bundle", bundle, *PROMPT, *ONE_BLOCK, "--lora", "a.safetensors:0.5")
    succeeds("generate", *arguments, "--out", "v.mp4")
    (label,) = json.loads(Path("v.mp4.json").read_text())["lora"]
    assert label.endswith(":0.5") and len(label) == 64 + 4


def test_what_is_refused(
    lora_ready_bundle: Ready, video_bundle: Path, refused: Refused, quantized_export: Path
) -> None:
    write_adapter("a.safetensors")
    write_adapter("wide.safetensors", 48)

    def no(bundle: Path, file: str, *words: str, code: int = 2) -> None:
        arguments = ("--bundle", bundle, *PROMPT, *ONE_BLOCK, *OUT, "--lora", file)
        refused("generate", *arguments, words=words, code=code)

    no(video_bundle, "a.safetensors", "without --lora-ready", "export --lora")
    bundle = lora_ready_bundle("fp32")
    no(bundle, "none.safetensors", "none.safetensors does not exist")
    no(bundle, "a.safetensors:1e9", "the scale of a LoRA", "allowed")
    refused(
        *("build", "--onnx", quantized_export, "--precision", "fp8", "--lora-ready", "--out", "b"),
        words=("--lora-ready: the graphs are quantized (fp8)", "merge the adapter"),
    )
