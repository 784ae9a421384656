"""YAML and JSON that multiply, nest, or make no sense, wherever such a file is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.robustness.support.hostile import JSON_DOCUMENTS, YAML_DOCUMENTS, YAML_VALUES
from tests.robustness.support.pairs import each_with_each
from tests.robustness.support.running import fail_unless_clean, faults
from tests.robustness.support.samples import Samples

Command = tuple[object, ...]
Context = Callable[[Samples, Path, str], Command]
_EXPORT = ("--transformer", "none.pt", "--out", "out")
_LATENTS = ("--latents-out", "out", "--overwrite", "--quiet")


def configuration(_: Samples, folder: Path, text: str) -> Command:
    (folder / "m.yaml").write_text(text)
    return ("export", "--config", "m.yaml", *_EXPORT)


def preset(samples: Samples, folder: Path, text: str) -> Command:
    (folder / "p.yaml").write_text(text)
    video = ("--bundle", samples.bundle, "--prompt", "a", "--frames", 3)
    return ("generate", *video, "--preset", "p.yaml", *_LATENTS)


def timeline(samples: Samples, folder: Path, text: str) -> Command:
    (folder / "t.yaml").write_text(text)
    video = ("--bundle", samples.bundle, "--timeline", "t.yaml", "--frames", 3)
    return ("generate", *video, *_LATENTS)


YAML_CONTEXTS: dict[str, tuple[Context, str]] = {
    "a configuration's fps": (configuration, "fps: {}\n"),
    "a configuration's steps": (configuration, "rollout: {{steps: {}}}\n"),
    "a preset's name": (preset, "name: {}\n"),
    "a timeline's prompt": (timeline, "- {{frame: 0, prompt: {}}}\n"),
    "a timeline's frame": (timeline, "- {{frame: {}, prompt: x}}\n"),
    "a timeline's key": (timeline, "? {}\n: x\n"),
}


@each_with_each("context, value", YAML_CONTEXTS, YAML_VALUES)
def test_yaml_values(context: str, value: str, samples: Samples, here: Path) -> None:
    command, text = YAML_CONTEXTS[context]
    fail_unless_clean(faults(command(samples, here, text.format(YAML_VALUES[value]))))


@pytest.mark.parametrize("document", YAML_DOCUMENTS)
@pytest.mark.parametrize("command", [configuration, timeline], ids=lambda c: c.__name__)
def test_yaml_documents(command: Context, document: str, samples: Samples, here: Path) -> None:
    fail_unless_clean(faults(command(samples, here, YAML_DOCUMENTS[document]), codes=[1, 2]))


@pytest.mark.parametrize("value", YAML_VALUES)
def test_values_of_set(value: str) -> None:
    for key in ("fps", "transformer.layers", "rollout", "name"):
        setting = f"{key}={YAML_VALUES[value]}"
        fail_unless_clean(faults(("export", "--config", "tiny", "--set", setting, *_EXPORT)))


# ---- JSON -------------------------------------------------------------------------------------


def manifest(_: Samples, folder: Path, data: bytes) -> Command:
    (folder / "b").mkdir()
    (folder / "b/manifest.json").write_bytes(data)
    return ("inspect", "b")


def pulled_manifest(_: Samples, folder: Path, data: bytes) -> Command:
    manifest(_, folder, data)
    return ("pull", "b", "--out", "out")


def catalog(_: Samples, folder: Path, data: bytes) -> Command:
    (folder / "c").mkdir()
    (folder / "c/index.json").write_bytes(data)
    return ("pull", "c", "--auto", "--out", "out")


def catalog_entry(_: Samples, folder: Path, data: bytes) -> Command:
    (folder / "c/catalog").mkdir(parents=True)
    (folder / "c/catalog/mine.json").write_bytes(data)
    return ("pull", "c", "--auto", "--out", "out")


def export_record(_: Samples, folder: Path, data: bytes) -> Command:
    (folder / "o").mkdir()
    (folder / "o/export.json").write_bytes(data)
    return ("build", "--onnx", "o", "--out", "out")


def shard_index(_: Samples, folder: Path, data: bytes) -> Command:
    # What begins otherwise is no JSON, and says so.
    (folder / "m.index.json").write_bytes(data)
    return ("export", "--config", "tiny", "--transformer", "m.index.json", "--out", "out")


def adapter_settings(samples: Samples, folder: Path, data: bytes) -> Command:
    shutil.copytree(samples.adapter, folder / "a")
    (folder / "a/adapter_config.json").write_bytes(data)
    base = ("--transformer", samples.checkpoint, "--lora", "a", "--vae", "none.pt")
    return ("export", "--config", samples.config, *base, "--out", "out")


def json_timeline(samples: Samples, folder: Path, data: bytes, name: str = "t.json") -> Command:
    (folder / name).write_bytes(data)
    video = ("--bundle", samples.bundle, "--timeline", name, "--frames", 3)
    return ("generate", *video, *_LATENTS)


def json_lines(samples: Samples, folder: Path, data: bytes) -> Command:
    return json_timeline(samples, folder, data, "t.jsonl")


JSON_CONTEXTS = (
    *(manifest, pulled_manifest, catalog, catalog_entry, export_record),
    *(shard_index, adapter_settings, json_timeline, json_lines),
)


@each_with_each("command, document", JSON_CONTEXTS, JSON_DOCUMENTS)
def test_json_documents(
    command: Callable[[Samples, Path, bytes], Command],
    document: str,
    samples: Samples,
    here: Path,
) -> None:
    arguments = command(samples, here, JSON_DOCUMENTS[document])
    fail_unless_clean(faults(arguments, codes=[0, 1, 2] if command is json_lines else [1, 2]))
    assert not (here / "out").is_dir()


@pytest.mark.parametrize("document", JSON_DOCUMENTS)
def test_replay_schedules(document: str, samples: Samples, here: Path) -> None:
    from safetensors.numpy import load_file, save_file

    text = JSON_DOCUMENTS[document].decode("utf-8", "replace")
    save_file(load_file(samples.replay), "r.safetensors", {"schedule": text})
    video = ("--bundle", samples.bundle, "--replay", "r.safetensors")
    fail_unless_clean(faults(("generate", *video, *_LATENTS), codes=[2]))


def test_samples_themselves_are_taken(samples: Samples, here: Path) -> None:
    """Or the refusals above would mean nothing."""
    bundle = ("generate", "--bundle", samples.bundle, *_LATENTS)
    for arguments in (
        (*bundle, "--timeline", samples.timeline, "--frames", 9),
        (*bundle, "--timeline", samples.recipe),
        (*bundle, "--replay", samples.replay),
        (*bundle, "--resume", samples.state, "--prompt", "a", "--frames", 3),
        ("inspect", samples.archive),
        ("pull", samples.catalog, "--auto", "--out", "pulled"),
        ("unpack", samples.archive, "--out", "unpacked"),
        ("build", "--onnx", samples.export, "--out", "built"),
    ):
        fail_unless_clean(faults(arguments, codes=[0]))
    assert json.loads(Path("built/manifest.json").read_text())["format"] == 1
