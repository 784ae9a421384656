"""A VAE and a text encoder with the contracts of the real ones, in a few elementwise operators.

What they compute is the same to the bit however many frames come at once.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.schema import TaehvConfig, TextEncoderConfig, VaeConfig
from longlive_trt.engines.bundles.bundle import (
    MANIFEST_NAME,
    Bundle,
    FileEntry,
    Manifest,
    open_bundle,
)
from longlive_trt.export.demo_tokenizer import write_demo_tokenizer
from longlive_trt.exports import graph_info

_VOCAB = 384
_HISTORY = 2
_TAPS = (0.2, 0.3, 0.5)
_END = 1 << 30

Shape = Sequence[int | str]


def add_stand_ins(mini: Path, folder: Path) -> None:
    """A transformer's bundle, with the other graphs beside it."""
    bundle = open_bundle(mini)
    config = _with_components(bundle.config)
    shutil.copytree(mini, folder)
    models = {
        "vae_first": _decoder(config, first=True),
        "vae_next": _decoder(config, first=False),
        "encode_first": _encoder(config, first=True),
        "encode_next": _encoder(config, first=False),
        "text": text_stand_in(config, _VOCAB),
    }
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    write_demo_tokenizer(folder, _VOCAB)
    manifest = _manifest(bundle, config, folder, list(models))
    (folder / MANIFEST_NAME).write_text(manifest.to_json())


def add_light_stand_in(video: Path, folder: Path) -> None:
    """The same bundle with a second decoder, whose pictures are half as bright."""
    bundle = open_bundle(video)
    config = replace(bundle.config, light_vae=TaehvConfig())
    shutil.copytree(video, folder)
    names = ["light_vae_first", "light_vae_next"]
    for name, first in zip(names, (True, False), strict=True):
        onnx.save(_decoder(config, first=first, brightness=0.5), folder / f"{name}.onnx")
    manifest = _manifest(bundle, config, folder, names)
    (folder / MANIFEST_NAME).write_text(replace(manifest, key="2" * 64).to_json())


def _with_components(config: ModelConfig) -> ModelConfig:
    dim = config.transformer.text_dim
    text = TextEncoderConfig(
        vocab=_VOCAB, dim=dim, attention_dim=dim, ffn_dim=dim, heads=2, layers=1
    )
    return replace(config, vae=VaeConfig(dim=8), text_encoder=text)


def _manifest(bundle: Bundle, config: ModelConfig, folder: Path, added: list[str]) -> Manifest:
    files = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST_NAME]
    entries = {
        path.name: FileEntry(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        for path in files
    }
    infos = {name: graph_info(ir.load(folder / f"{name}.onnx")) for name in added}
    graphs = {**bundle.manifest.graphs, **infos}
    return replace(bundle.manifest, config=config, graphs=graphs, files=entries)


class _Graph:
    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, shape: Shape, dtype: int = TensorProto.FLOAT) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, value: str, shape: Shape, dtype: int = TensorProto.FLOAT) -> None:
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        name = f"constant.{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"value.{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def numbers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, self._constants
        )
        opset = helper.make_opsetid("", 22)
        return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def _decoder(config: ModelConfig, *, first: bool, brightness: float = 1) -> onnx.ModelProto:
    """Two causal convolutions in time, each channel for itself, then nearest upsampling."""
    channels, height, width = config.latent_shape
    graph = _Graph("vae_first" if first else "vae_next")
    count, pictures = (1, 1) if first else ("latent_frames", "4*latent_frames")
    latents = graph.input("latents", ["batch", count, channels, height, width])
    history = ["batch", channels, _HISTORY, height, width]
    x, kept = graph.op("Transpose", latents, perm=[0, 2, 1, 3, 4]), []
    for number in range(2):
        past = _no_past(graph, x) if first else graph.input(f"cache.{number}", history)
        joined = graph.op("Concat", past, x, axis=2)
        kept.append(_in_time(graph, joined, -_HISTORY, _END))
        x = _squashed(graph, _weighted(graph, joined))
    x = graph.op("Mul", x, graph.constant(brightness)) if brightness != 1 else x
    frames, pixels = _pictures(graph, x, 1 if first else 4, height, width)
    size = (8 * height, 8 * width)
    graph.output("frames", frames, ["batch", pictures, 3, *size])
    graph.output("pixels", pixels, ["batch", pictures, *size, 3], TensorProto.UINT8)
    for number, value in enumerate(kept):
        graph.output(f"cache_next.{number}", value, history)
    return graph.model()


def _no_past(graph: _Graph, x: str) -> str:
    none = graph.op("Mul", x, graph.constant(0))
    return graph.op("Concat", none, none, axis=2)


def _in_time(graph: _Graph, x: str, start: int, end: int) -> str:
    bounds = (graph.numbers(number) for number in (start, end, 2))
    return graph.op("Slice", x, *bounds)


def _weighted(graph: _Graph, x: str) -> str:
    ends = (-2, -1, _END)
    taps = [
        graph.op("Mul", _in_time(graph, x, start, ends[start]), graph.constant(weight))
        for start, weight in enumerate(_TAPS)
    ]
    return graph.op("Add", graph.op("Add", taps[0], taps[1]), taps[2])


def _squashed(graph: _Graph, x: str) -> str:
    size = graph.op("Add", graph.op("Abs", x), graph.constant(1))
    return graph.op("Div", x, size)


def _pictures(graph: _Graph, x: str, copies: int, height: int, width: int) -> tuple[str, str]:
    """[B, C, F, H, W] to copies * F frames, no two copies alike, and to the same as bytes."""
    colors = graph.op("Slice", x, *(graph.numbers(number) for number in (0, 3, 1)))
    brightness = [graph.constant((copy + 1) / copies) for copy in range(copies)]
    dimmed = [graph.op("Mul", colors, factor) for factor in brightness]
    parts = [graph.op("Unsqueeze", part, graph.numbers(3)) for part in dimmed]
    video = graph.op("Concat", *parts, axis=3)
    dots = graph.op("Reshape", video, graph.numbers(0, 3, -1, height, 1, width, 1))
    large = graph.op("Expand", dots, graph.numbers(1, 1, 1, 1, 8, 1, 8))
    rows = graph.op("Reshape", large, graph.numbers(0, 3, -1, 8 * height, 8 * width))
    half = graph.constant(127.5)
    scaled = graph.op("Add", graph.op("Mul", rows, half), half)
    pixels = graph.op("Transpose", scaled, perm=[0, 2, 3, 4, 1])
    frames = graph.op("Transpose", rows, perm=[0, 2, 1, 3, 4])
    return frames, graph.op("Cast", pixels, to=TensorProto.UINT8)


def _encoder(config: ModelConfig, *, first: bool) -> onnx.ModelProto:
    """The mean color of each place, and half of what it was before."""
    channels, height, width = config.latent_shape
    graph = _Graph("encode_first" if first else "encode_next")
    count, kept = 1 if first else 4, ["batch", channels, 1, height, width]
    pixels = graph.input("pixels", ["batch", count, 8 * height, 8 * width, 3], TensorProto.UINT8)
    numbers = graph.op("Cast", pixels, to=TensorProto.FLOAT)
    places = graph.op("Reshape", numbers, graph.numbers(0, count, height, 8, width, 8, 3))
    mean = graph.op("ReduceMean", places, graph.numbers(1, 3, 5), keepdims=0)
    scaled = graph.op("Sub", graph.op("Div", mean, graph.constant(127.5)), graph.constant(1))
    colors = graph.op("Transpose", scaled, perm=[0, 3, 1, 2])
    bounds = (graph.numbers(number) for number in (0, channels, 1))
    repeated = graph.op("Concat", *[colors] * (channels // 3 + 1), axis=1)
    now = graph.op("Unsqueeze", graph.op("Slice", repeated, *bounds), graph.numbers(2))
    if not first:
        past = graph.op("Mul", graph.input("cache.0", kept), graph.constant(0.5))
        now = graph.op("Add", now, past)
    latents = graph.op("Transpose", now, perm=[0, 2, 1, 3, 4])
    graph.output("latents", latents, ["batch", 1, channels, height, width])
    graph.output("cache_next.0", now, kept)
    return graph.model()


def text_stand_in(config: ModelConfig, vocab: int) -> onnx.ModelProto:
    """A row of a table for each token."""
    graph, sizes = _Graph("text"), config.transformer
    ids, mask = (
        graph.input(name, ["batch", sizes.text_len], TensorProto.INT64) for name in ("ids", "mask")
    )
    table = np.random.default_rng(7).standard_normal((vocab, sizes.text_dim))
    states = graph.op("Gather", graph.constant(table), ids)
    counted = graph.op("Cast", mask, to=TensorProto.FLOAT)
    masked = graph.op("Mul", states, graph.op("Unsqueeze", counted, graph.numbers(2)))
    graph.output("text_states", masked, ["batch", sizes.text_len, sizes.text_dim])
    return graph.model()
