"""Every format that is read: how a sample of it is taken apart and put together again, changed.

A change is made to the structure, with the seals and sizes that belong to it made anew, or to the
bytes of the file as they are.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
import zstandard

from tests.robustness.support.samples import Samples, sealed

Structure = Any
Command = tuple[object, ...]
# Opening the transformer, and all that belongs to it, comes before this is missed.
_NO_VAE = ("--vae", "none.safetensors", "--out", "out")
_LATENTS = ("--latents-out", "out", "--overwrite", "--quiet")


@dataclass(frozen=True)
class Format:
    read: Callable[[Path], Structure]
    """The structure in a sample file."""
    write: Callable[[Path, Structure, Path], None]
    """(sample file, changed structure, target)"""
    sample: Callable[[Samples], Path]
    command: Callable[[Samples, Path], Command]
    """What reads a file of this format."""
    target: str
    """Where the file goes, below the folder of a case."""
    beside: Callable[[Samples], Path | None] = lambda _: None
    """A folder that the target is a part of."""
    named: Callable[[Samples], Path | None] = lambda _: None
    """A file that it names."""

    def prepare(self, samples: Samples, folder: Path) -> Path:
        """The target's path in a new folder, with what belongs beside it."""
        target, around = folder / self.target, self.beside(samples)
        if around is not None:
            shutil.copytree(around, folder / Path(self.target).parts[0], copy_function=_link)
        named = self.named(samples)
        if named is not None:
            _link(str(named), str(folder / named.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        return target


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def _read_json(path: Path) -> Structure:
    return json.loads(path.read_bytes())


def _write_json(_: Path, values: Structure, target: Path) -> None:
    target.write_text(json.dumps(values))


def _write_manifest(_: Path, values: Structure, target: Path) -> None:
    is_plain = isinstance(values, dict)
    target.write_bytes(sealed(values) if is_plain else json.dumps(values).encode())


def _read_yaml(path: Path) -> Structure:
    return yaml.safe_load(path.read_text())


def _write_yaml(_: Path, values: Structure, target: Path) -> None:
    target.write_text(yaml.safe_dump(values))


# ---- safetensors ------------------------------------------------------------------------------


def _parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _read_header(path: Path) -> Structure:
    """With the texts in the metadata that are JSON taken apart too."""
    header = _parts(path)[0]
    metadata = header.get("__metadata__", {})
    for key, text in metadata.items():
        if text[:1] in ("{", "["):
            metadata[key] = {"JSON": json.loads(text)}
    return header


def _write_header(sample: Path, header: Structure, target: Path) -> None:
    data = _parts(sample)[1]
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        metadata = header["__metadata__"]
        for key, value in metadata.items():
            if isinstance(value, dict) and "JSON" in value:
                metadata[key] = json.dumps(value["JSON"])
        if isinstance(metadata.get("state"), str) and "sha256" in metadata:
            metadata["sha256"] = _state_digest(metadata["state"], header, data)
    encoded = json.dumps(header).encode()
    target.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def _state_digest(text: str, header: Mapping[str, Any], data: bytes) -> str:
    """As a state's own, for all that can be computed of it."""
    from longlive_trt.reading.tensors import NUMPY_TYPES

    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    try:
        for name, entry in sorted(header.items()):
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                kind = NUMPY_TYPES[entry["dtype"]]
                digest.update(f"{name} {kind} {tuple(entry['shape'])}".encode())
                digest.update(data[begin:end])
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    return digest.hexdigest()


# ---- archives ---------------------------------------------------------------------------------


def _read_archive(path: Path) -> Structure:
    """Headers of the tar as texts of fields, and the manifest."""
    from tests.robustness.support.tars import entries

    with path.open("rb") as file:
        tar = zstandard.ZstdDecompressor().stream_reader(file).read()
    return entries(tar)


def _write_archive(_: Path, values: Structure, target: Path) -> None:
    from tests.robustness.support.tars import packed

    target.write_bytes(packed(values))


# ---- the table --------------------------------------------------------------------------------


def _generate(samples: Samples, *options: object) -> Command:
    return ("generate", "--bundle", samples.bundle, *options, *_LATENTS)


def _with_adapter(samples: Samples) -> Command:
    length = ("--prompt", "a", "--frames", 3)
    return ("generate", "--bundle", samples.lora_bundle, "--lora", "a", *length, *_LATENTS)


FORMATS: dict[str, Format] = {
    "manifest": Format(
        read=_read_json,
        write=_write_manifest,
        sample=lambda samples: samples.bundle / "manifest.json",
        command=lambda _, __: (
            *("generate", "--bundle", "b", "--prompt", "a", "--frames", 3, *_LATENTS),
        ),
        target="b/manifest.json",
        beside=lambda samples: samples.bundle,
    ),
    "manifest, inspected": Format(
        read=_read_json,
        write=_write_manifest,
        sample=lambda samples: samples.bundle / "manifest.json",
        command=lambda _, __: ("inspect", "b"),
        target="b/manifest.json",
    ),
    "manifest, pushed": Format(
        read=_read_json,
        write=_write_manifest,
        sample=lambda samples: samples.bundle / "manifest.json",
        command=lambda _, __: ("push", "b", "out"),
        target="b/manifest.json",
        beside=lambda samples: samples.bundle,
    ),
    "catalog": Format(
        read=_read_json,
        write=_write_json,
        sample=lambda samples: samples.catalog / "index.json",
        command=lambda _, __: ("pull", "c", "--auto", "--out", "out"),
        target="c/index.json",
        beside=lambda samples: samples.catalog,
    ),
    "export record": Format(
        read=_read_json,
        write=_write_json,
        sample=lambda samples: samples.export / "export.json",
        command=lambda _, __: ("build", "--onnx", "o", "--out", "out"),
        target="o/export.json",
        beside=lambda samples: samples.export,
    ),
    "state": Format(
        read=_read_header,
        write=_write_header,
        sample=lambda samples: samples.state,
        command=lambda samples, __: _generate(
            samples, "--resume", "s.state", "--prompt", "a", "--frames", 3
        ),
        target="s.state",
    ),
    "replay": Format(
        read=_read_header,
        write=_write_header,
        sample=lambda samples: samples.replay,
        command=lambda samples, __: _generate(samples, "--replay", "r.safetensors"),
        target="r.safetensors",
    ),
    "checkpoint": Format(
        read=_read_header,
        write=_write_header,
        sample=lambda samples: samples.checkpoint,
        command=lambda samples, __: (
            *("export", "--config", samples.config, "--transformer", "base.safetensors"),
            *_NO_VAE,
        ),
        target="base.safetensors",
    ),
    "archive": Format(
        read=_read_archive,
        write=_write_archive,
        sample=lambda samples: samples.archive,
        command=lambda _, __: ("unpack", "b.tar.zst", "--out", "out"),
        target="b.tar.zst",
    ),
    "timeline": Format(
        read=_read_yaml,
        write=_write_yaml,
        sample=lambda samples: samples.timeline,
        command=lambda samples, __: _generate(samples, "--timeline", "t.yaml", "--frames", 9),
        target="t.yaml",
    ),
    "recipe": Format(
        read=_read_json,
        write=_write_json,
        sample=lambda samples: samples.recipe,
        command=lambda samples, __: _generate(samples, "--timeline", "t.json"),
        target="t.json",
    ),
    "configuration": Format(
        read=_read_yaml,
        write=_write_yaml,
        sample=lambda samples: samples.config,
        command=lambda samples, __: (
            *("export", "--config", "m.yaml", "--transformer", samples.checkpoint),
            *_NO_VAE,
        ),
        target="m.yaml",
    ),
    "shard index": Format(
        read=_read_json,
        write=_write_json,
        sample=lambda samples: samples.shards,
        command=lambda samples, __: (
            *("export", "--config", samples.config, "--transformer", "i.index.json"),
            *_NO_VAE,
        ),
        target="i.index.json",
        named=lambda samples: samples.shards.with_name("model-00001-of-00001.safetensors"),
    ),
    "adapter settings": Format(
        read=_read_json,
        write=_write_json,
        sample=lambda samples: samples.adapter / "adapter_config.json",
        command=lambda samples, __: (
            *("export", "--config", samples.config, "--transformer", samples.checkpoint),
            *("--lora", "a", *_NO_VAE),
        ),
        target="a/adapter_config.json",
        beside=lambda samples: samples.adapter,
    ),
    "latents, decoded": Format(
        read=_read_header,
        write=_write_header,
        sample=lambda samples: samples.latents,
        command=lambda samples, __: (
            *("decode", "--bundle", samples.bundle, "--latents", "l.safetensors"),
            *("--frames-out", "out", "--overwrite", "--quiet"),
        ),
        target="l.safetensors",
    ),
    "latents, begun with": Format(
        read=_read_header,
        write=_write_header,
        sample=lambda samples: samples.latents,
        command=lambda samples, __: _generate(
            samples, "--start", "l.safetensors", "--prompt", "a", "--frames", 3
        ),
        target="l.safetensors",
    ),
    "adapter, used": Format(
        read=_read_header,
        write=_write_header,
        sample=lambda samples: samples.adapter / "adapter_model.safetensors",
        command=lambda samples, __: _with_adapter(samples),
        target="a/adapter_model.safetensors",
        beside=lambda samples: samples.adapter,
    ),
    "adapter settings, used": Format(
        read=_read_json,
        write=_write_json,
        sample=lambda samples: samples.adapter / "adapter_config.json",
        command=lambda samples, __: _with_adapter(samples),
        target="a/adapter_config.json",
        beside=lambda samples: samples.adapter,
    ),
}
