"""Bundles for ONNX Runtime on a GPU: graphs written for it, with our own kernels in them.

Nothing here needs a GPU. What is not written by hand (the encoders of texts and of pictures, and
decoders that our kernels do not take) runs as it was exported.
"""

import hashlib
import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import onnx_ir as ir

from longlive_trt.architectures import HOPPER, WITH_KERNELS, Architecture
from longlive_trt.basics import Report
from longlive_trt.configs import ModelConfig, TaehvConfig
from longlive_trt.configs.dump import config_values
from longlive_trt.contract import (
    COMPONENT_OF,
    DECODER_GRAPHS,
    ENCODER_GRAPHS,
    LATENTS,
    LIGHT_VAE_GRAPHS,
    ONNXRUNTIME,
    PART_GRAPHS,
    PROMPT,
    STEP,
    TEXT,
    TILE_GRAPHS,
    TRANSFORMER,
    VAE_GRAPHS,
    weights_file,
)
from longlive_trt.engines.bundles.bundle import EngineKind
from longlive_trt.engines.compiler import BuildOptions, GraphSource, require_exchangeable
from longlive_trt.engines.graphs.kernels import kernels_of, why_as_exported
from longlive_trt.engines.graphs.step import build_step_graphs
from longlive_trt.engines.graphs.taehv import build_taehv_graphs
from longlive_trt.engines.graphs.vae import build_vae_graphs
from longlive_trt.engines.matrices import OPTION, SeparateMatrices, is_adapted
from longlive_trt.engines.ort import cpu
from longlive_trt.errors import UsageError
from longlive_trt.exports import (
    ExportRecord,
    GraphInfo,
    Quantization,
    graph_info,
    load_graph,
)
from longlive_trt.plugins import onnxruntime_bridge
from longlive_trt.plugins.attention.variants import NARROW_HEAD_DIM
from longlive_trt.plugins.cuda.compilation import SOURCE_DIR
from longlive_trt.plugins.kernels.registry import sources_of
from longlive_trt.plugins.onnxruntime_bridge import LIBRARY_NAME, compiled_library
from longlive_trt.precision import PRECISIONS, Precision, retype

logger = logging.getLogger(__name__)

KERNEL_GRAPHS = (STEP, PROMPT, *VAE_GRAPHS)
_GRAPHS_VERSION = 6
"""Of what is written; another one with every change of the written graphs."""
_FOLLOWING = {following for _, following in DECODER_GRAPHS.values()}
_VAE_PRECISION = PRECISIONS["fp16"]
_TEXT_PRECISION = PRECISIONS["bf16"]
"""What the encoder was trained in; half precision may overflow in it."""


class OnnxRuntimeGpuCompiler:
    def __init__(self, options: BuildOptions, precision: Precision) -> None:
        options.refuse_others(ONNXRUNTIME, ("gpu", "batch", "lora_ready"))
        self._asked = options
        self._matrices = SeparateMatrices() if options.lora_ready else None
        self._gpu, self._batch = _architecture(options.gpu or ""), options.batch
        self._precision = precision
        self._attention = precision.name
        self._kernels: set[str] = set()
        self._kernel_graphs: tuple[str, ...] = KERNEL_GRAPHS

    @property
    def kind(self) -> EngineKind:
        return EngineKind(ONNXRUNTIME, cpu.version(), str(self._gpu))

    @property
    def options(self) -> Mapping[str, object]:
        return {
            "batch": self._batch,
            "kernel_graphs": self._kernel_graphs,
            "graphs_version": _GRAPHS_VERSION,
            "attention": self._attention,
            "compute": self._precision.name,
            **({OPTION: True} if self._matrices is not None else {}),
        }

    @property
    def plugins(self) -> Mapping[str, str]:
        """The kernels are compiled where they run; their sources decide what is computed."""
        names = [*sources_of(self._kernels, self._gpu), onnxruntime_bridge.SOURCE]
        return {
            name: hashlib.sha256((SOURCE_DIR / name).read_bytes()).hexdigest() for name in names
        }

    def decisive(self, config: ModelConfig, component: str) -> object:
        """The writers read the configuration; kernels are compiled where they run."""
        compute, values = self._precision.name, config_values(config)
        if component == TRANSFORMER:
            rope = config.rollout.rope
            apart = self._matrices is not None
            written = [_GRAPHS_VERSION, compute, self._attention, rope, apart]
            return [*written, values["transformer"], values["latent"]]
        if component in DECODER_GRAPHS and not why_as_exported(config, component):
            return [_GRAPHS_VERSION, compute, self._batch, values["latent"], values[component]]
        return compute

    def reuse(self, graphs: Collection[str], donor: Path) -> None:
        """Nothing is written of them but their files."""
        if self._matrices is not None and STEP in graphs:
            self._matrices.reuse(donor)

    def check(self, record: ExportRecord) -> None:
        self._kernels = kernels_of(record)
        self._kernel_graphs = _written_graphs(record)
        require_exchangeable(self._asked, record)
        if self._precision.name == "fp32":
            raise UsageError(
                "--gpu needs --precision fp16 or bf16: our kernels compute in half precision; for "
                "fp32 on a GPU build without --gpu and generate with --device cuda"
            )
        if record.quantization is not None:
            self._check_quantization(record.quantization)
            self._check_attention(record.quantization, record.config.transformer.head_dim)
        compiled_library()

    def _check_quantization(self, quantization: Quantization) -> None:
        """What is quantized is a kernel of ours, or the VAE's convolutions stay in 16 bits."""
        if quantization.precision != "fp8":
            raise UsageError(
                f"--precision {quantization.precision} --gpu: on a GPU ONNX Runtime's graphs "
                "multiply in fp8 or 16 bits; build with --precision fp8, or with --engine tensorrt"
            )
        if not self._gpu.has_fp8:
            raise UsageError(
                f"--precision fp8 --gpu {self._gpu}: its tensor cores have no fp8; build with "
                "--precision bf16"
            )

    def _check_attention(self, quantization: Quantization, head_dim: int) -> None:
        kind = quantization.attention
        self._attention = kind or self._precision.name
        has_kernel = self._gpu.has_hopper_attention and head_dim == NARROW_HEAD_DIM
        if kind is None or has_kernel:
            return
        if kind == "int8":
            # What is kept is kept alike for every kernel.
            self._attention = self._precision.name
            kept = "values" if quantization.cache is None else "keys and values"
            logger.warning(
                "--gpu %s: attention in int8 takes %s and heads of %d (these have %d); %s are kept "
                "in eight bits, and attention is in %s",
                *(self._gpu, HOPPER, NARROW_HEAD_DIM, head_dim, kept, self._precision.name),
            )
            return
        raise UsageError(
            f"--gpu {self._gpu}: self-attention of the graphs is in {kind}, for which our kernel "
            f"takes {HOPPER} and heads of {NARROW_HEAD_DIM} only (these have {head_dim}); "
            "calibrate without --attention"
        )

    def compile(self, source: GraphSource, folder: Path, report: Report) -> None:
        config, exported = source.config, source.path.parent
        component = COMPONENT_OF[source.name]
        # Writers write two graphs and more, which share what they are written from.
        if source.name == STEP:
            self._build_step_graphs(source, folder)
        elif reason := why_as_exported(config, component):
            if source.name in _FOLLOWING:
                self._tell_of_exported(component, reason)
            self._retype(source, folder, _VAE_PRECISION)
        elif source.name in _FOLLOWING:
            self._write_decoder(component, config, exported, folder)
        elif source.name == TEXT:
            self._retype(source, folder, _TEXT_PRECISION)
        elif source.name in ENCODER_GRAPHS:
            self._retype(source, folder, _VAE_PRECISION)

    def _tell_of_exported(self, component: str, reason: str) -> None:
        logger.warning(
            "--gpu %s: %s runs as it was exported, in %s: %s",
            *(self._gpu, component, _VAE_PRECISION.name, reason),
        )

    def _build_step_graphs(self, source: GraphSource, folder: Path) -> None:
        exported, hopper = source.path.parent, self._gpu.has_hopper_attention
        arguments = (source.config, exported, self._precision, folder)
        if self._matrices is None:
            build_step_graphs(*arguments, hopper=hopper)
            return
        layouts = build_step_graphs(*arguments, hopper=hopper, is_separate=is_adapted)
        for name, layout in layouts.items():
            path = exported / f"{name}.onnx"
            self._matrices.collect(load_graph(path), path)
            self._matrices.lay_out(name, layout)

    def _write_decoder(
        self, component: str, config: ModelConfig, exported: Path, folder: Path
    ) -> None:
        if isinstance(config.decoder(component), TaehvConfig):
            build_taehv_graphs(
                config,
                component,
                exported,
                _VAE_PRECISION,
                folder,
                batch=self._batch,
                latents=self._precision,
            )
            return
        build_vae_graphs(
            config,
            exported,
            _VAE_PRECISION,
            folder,
            batch=self._batch,
            latents=self._precision,
            hopper=self._gpu.has_hopper_attention,
            component=component,
            tiles=TILE_GRAPHS[component][0] in self._kernel_graphs,
        )

    def info(self, source: GraphSource, folder: Path) -> GraphInfo:
        info = graph_info(ir.load(folder / f"{source.name}.onnx"))
        return info if self._matrices is None else self._matrices.described(source.name, info)

    def finish(self, folder: Path) -> None:
        if self._matrices is not None:
            self._matrices.write(folder)
        shutil.copyfile(compiled_library(), folder / LIBRARY_NAME)

    def _retype(self, source: GraphSource, folder: Path, precision: Precision) -> None:
        model = ir.load(source.path)
        retype(model, precision)
        _take_latents(model.graph, self._precision)
        ir.save(model, folder / source.path.name, external_data=weights_file(source.name))


def _written_graphs(record: ExportRecord) -> tuple[str, ...]:
    rare = (*LIGHT_VAE_GRAPHS, *PART_GRAPHS)
    graphs = (*KERNEL_GRAPHS, *(graph for graph in rare if graph in record.graphs))
    return tuple(
        graph for graph in graphs if not why_as_exported(record.config, COMPONENT_OF[graph])
    )


def _take_latents(graph: ir.Graph, precision: Precision) -> None:
    """As the transformer makes them."""
    for place, latents in enumerate(graph.inputs):
        if latents.name != LATENTS or latents.dtype == precision.onnx:
            continue
        made = ir.Value(name=LATENTS, type=ir.TensorType(precision.onnx), shape=latents.shape)
        graph.inputs[place] = made
        latents.name = f"{LATENTS}.computed"
        assert latents.dtype is not None
        cast = ir.node("Cast", [made], {"to": latents.dtype}, outputs=[latents])
        graph.insert_before(graph[0], cast)


def _architecture(gpu: str) -> Architecture:
    architecture = Architecture.named(gpu)
    if architecture is None or architecture not in WITH_KERNELS:
        allowed = ", ".join(map(str, WITH_KERNELS))
        raise UsageError(f"--gpu {gpu}: allowed with --engine {ONNXRUNTIME}: {allowed}")
    return architecture
