"""One sound file of every format that is read, small enough to be taken apart in milliseconds."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from longlive_trt.cli import main
from longlive_trt.configs import load_config
from longlive_trt.engines.bundles.bundle import read_manifest

CONFIG = """\
name: a model
transformer: {dim: 36, heads: 3, layers: 2, ffn_dim: 48, freq_dim: 16, text_len: 5, text_dim: 12}
latent: {height: 4, width: 6}
rollout: {rope: relative, window_frames: 9, sink_frames: 3, steps: [1000, 500]}
vae: {dim: 8}
"""
TIMELINE = """\
- {frame: 0, prompt: a cat}
- {frame: 3, prompt: &dog "a dog"}
- {seconds: 1.5, prompt: *dog}
"""


@dataclass(frozen=True)
class Samples:
    """Paths of files that commands take."""

    bundle: Path
    """With stand-ins for the VAE and the text encoder."""
    lora_bundle: Path
    """The same, with matrices that adapters change."""
    archive: Path
    catalog: Path
    """A folder with both of them."""
    export: Path
    state: Path
    replay: Path
    latents: Path
    """That a video kept."""
    checkpoint: Path
    """A transformer's weights."""
    adapter: Path
    """A folder with a LoRA adapter."""
    shards: Path
    config: Path
    timeline: Path
    recipe: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "Samples":
        return cls(
            bundle=folder / "bundle",
            lora_bundle=folder / "lora-bundle",
            archive=folder / "bundle.tar.zst",
            catalog=folder / "catalog",
            export=folder / "export",
            state=folder / "video.state",
            replay=folder / "replay.safetensors",
            latents=folder / "l.safetensors",
            checkpoint=folder / "base.safetensors",
            adapter=folder / "adapter",
            shards=folder / "model.safetensors.index.json",
            config=folder / "model.yaml",
            timeline=folder / "timeline.yaml",
            recipe=folder / "recipe.json",
        )


def make_samples(folder: Path, bundle: Path, lora_bundle: Path, export: Path) -> None:
    folder.mkdir()
    samples = Samples.in_folder(folder)
    shutil.copytree(bundle, samples.bundle)
    shutil.copytree(lora_bundle, samples.lora_bundle)
    shutil.copytree(export, samples.export)
    run("pack", bundle, "--out", samples.archive)
    run("push", bundle, samples.catalog)
    run("push", samples.archive, samples.catalog)
    latents = ("--latents-out", samples.latents, "--out", folder / "v.mp4")
    length = ("--prompt", "a cat", "--frames", 6, "--save-state", samples.state)
    run("generate", "--bundle", bundle, *length, *latents, "--quiet")
    samples.config.write_text(CONFIG)
    samples.timeline.write_text(TIMELINE)
    samples.recipe.write_text(json.dumps(_recipe(bundle)))
    _write_replay(samples.replay)
    _write_checkpoints(samples)


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def _recipe(bundle: Path) -> dict[str, Any]:
    key = read_manifest(bundle).key
    prompts = [{"frame": 0, "prompt": "a cat"}, {"frame": 3, "prompt": "a dog"}]
    head = {"format": 1, "seed": 3, "switch": "exact", "bundle_key": key, "frames": 6}
    return {**head, "prompts": prompts, "command": ""}


def _write_replay(path: Path) -> None:
    random = np.random.default_rng(0)
    shapes = {
        "noise": (1, 6, 16, 4, 6),
        "renoise": (2, 3, 1, 3, 16, 4, 6),
        "prompt.0": (1, 5, 12),
        "prompt.1": (1, 5, 12),
    }
    tensors = {name: random.random(shape, np.float32) for name, shape in shapes.items()}
    schedule = [{"frame": 0, "prompt": 0}, {"frame": 3, "prompt": 1}]
    save_file(tensors, path, {"schedule": json.dumps(schedule)})


def _write_checkpoints(samples: Samples) -> None:
    from longlive_trt.export.checkpoints.random import RandomWeights
    from longlive_trt.export.components import expected_shapes
    from longlive_trt.export.models.transformer import Transformer

    folder, config = samples.checkpoint.parent, load_config(samples.config)
    made_up = RandomWeights(expected_shapes(lambda: Transformer(config.transformer)), 0)
    weights = {name: made_up.load(name).numpy() for name in made_up.names}
    save_file(weights, samples.checkpoint)
    name = "blocks.0.self_attn.q"
    dim = weights[f"{name}.weight"].shape[0]
    a, b = np.ones((4, dim), np.float32), np.ones((dim, 4), np.float32)
    samples.adapter.mkdir()
    pair = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    save_file(pair, samples.adapter / "adapter_model.safetensors")
    (samples.adapter / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    save_file(weights, folder / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(weights, "model-00001-of-00001.safetensors")
    samples.shards.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def sealed(values: dict[str, Any]) -> bytes:
    """A manifest's text with the sha256 that belongs to it."""
    text = json.dumps({**values, "sha256": ""}, indent=1) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text.replace('"sha256": ""', f'"sha256": "{digest}"', 1).encode()
