"""The builder that TensorRT and TensorRT-RTX share: a graph goes in, a plan comes out."""

import json
import logging
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longlive_trt.architectures import FIRST_WITH_FP8
from longlive_trt.basics import Report
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.dump import config_values
from longlive_trt.contract import PLAN_SUFFIX, STEP, TRANSFORMER
from longlive_trt.engines.bundles.bundle import EngineKind
from longlive_trt.engines.compiler import BuildOptions, GraphSource, retyped_info
from longlive_trt.engines.memory import attended_frames
from longlive_trt.engines.trt import timing_cache
from longlive_trt.engines.trt.attention import quantize_softmax
from longlive_trt.engines.trt.failures import explain_failure, require_attention, require_memory
from longlive_trt.engines.trt.flavors import Flavor, Inspection
from longlive_trt.engines.trt.graph import PreparedGraph, attentions_of, connect_lengths, prepare
from longlive_trt.engines.trt.monitor import (
    BuildLog,
    Phases,
    make_logger,
    make_monitor,
    run_watched,
)
from longlive_trt.engines.trt.plugins import (
    plugin_hashes,
    register_plugin,
    takes_attention,
    uses_plugin,
)
from longlive_trt.engines.trt.profiles import Profile, profiles
from longlive_trt.engines.trt.report import REPORT_NAME, GraphReport, count_attention, parse_layers
from longlive_trt.errors import BundleError, EngineError, UsageError
from longlive_trt.exports import ExportRecord, GraphInfo, Quantization
from longlive_trt.plugins.attention.tensorrt_integer import HEAD_DIM
from longlive_trt.precision import Precision
from longlive_trt.reading.documents import JSON_BYTES, parse_json
from longlive_trt.reading.failures import refusing
from longlive_trt.reading.files import read_bytes

logger = logging.getLogger(__name__)

_STEPS_SHOWN = 1000


class TensorRtCompiler:
    def __init__(
        self, flavor: Flavor, options: BuildOptions, precision: Precision, config: ModelConfig
    ) -> None:
        options.refuse_others(flavor.kind, flavor.options)
        self._flavor, self._asked, self._precision = flavor, options, precision
        self._trt = flavor.load()
        self._target = flavor.target(self._trt, options.gpu)
        self._plugin = uses_plugin(options, flavor, self._target, precision, config)
        self._config = config
        self._narrow_attention: str | None = None
        self._reports: list[GraphReport] = []
        self._reused: list[dict[str, Any]] = []

    @property
    def kind(self) -> EngineKind:
        return EngineKind(self._flavor.kind, str(self._trt.__version__), str(self._target))

    @property
    def options(self) -> Mapping[str, object]:
        asked = {k: v for k, v in asdict(self._asked).items() if k in self._flavor.options}
        # Where times are kept changes no engine, and the GPU is the target.
        kept = {k: v for k, v in asked.items() if k not in ("timing_cache", "gpu")}
        if self._target.gpu_name:
            kept["gpu_name"] = self._target.gpu_name
        return {**kept, "attention": "plugin" if self._plugin else "standard"}

    @property
    def plugins(self) -> Mapping[str, str]:
        if not self._plugin:
            return {}
        return plugin_hashes(self._config, self._precision, self._narrow_attention)

    def decisive(self, config: ModelConfig, component: str) -> object:
        """Engines are made for ranges of sizes, some of which the rollout has."""
        choices = [dict(self.options), dict(self.plugins), config_values(config)["latent"]]
        if component != TRANSFORMER:
            return choices
        rollout = config.rollout
        sizes = [rollout.frames_per_block, attended_frames(config), rollout.sink_frames]
        return [*choices, *sizes, rollout.global_sink, rollout.is_global]

    def reuse(self, graphs: Collection[str], donor: Path) -> None:
        """Their part of the report comes along."""
        with refusing(BundleError, donor / REPORT_NAME, "build with --force"):
            report = parse_json(read_bytes(donor / REPORT_NAME, JSON_BYTES))
        told = report.get("graphs") if isinstance(report, dict) else None
        self._reused += [graph for graph in told or () if graph.get("graph") in graphs]

    def check(self, record: ExportRecord) -> None:
        for graph, info in record.graphs.items():
            profiles(graph, info, record.config, self._asked.batch)
        if record.quantization is not None:
            self._check_quantization(record.quantization)
        has_attention = STEP in record.graphs
        if has_attention and self._precision.name == "fp32" and not self._may_decompose:
            raise UsageError(
                f"{self._flavor.kind} has no fused attention kernel in fp32; build with "
                f"--precision fp16 or bf16, or accept slow engines that hold every attention "
                f"weight in memory with --allow-decomposed-attention"
            )

    def _check_quantization(self, quantization: Quantization) -> None:
        self._narrow_attention = kind = quantization.attention
        if kind is not None and self._plugin and not takes_attention(kind, self._config):
            raise UsageError(
                f"self-attention of the graphs is in {kind}, and our kernel as a plugin takes half "
                f"precision, or int8 with heads of {HEAD_DIM}; build with --attention standard, or "
                f"quantize without --attention"
            )
        if "fp8" in quantization.formats:
            self._require_fp8()
        if kind == "int8" and not self._plugin:
            logger.warning(
                "--engine %s has no attention in int8: queries and keys are rounded to it and "
                "multiplied in half precision",
                self._flavor.kind,
            )

    @property
    def _may_decompose(self) -> bool:
        return self._asked.allow_decomposed_attention

    def _require_fp8(self) -> None:
        if not self._target.architecture.has_fp8:
            raise UsageError(
                f"fp8 on {self._target}: these GPUs have no fp8 arithmetic, which begins with "
                f"{FIRST_WITH_FP8}; build with --precision fp16 or int8"
            )

    def compile(self, source: GraphSource, folder: Path, report: Report) -> None:
        started = time.monotonic()
        shapes = profiles(source.name, source.info, source.config, self._asked.batch)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
            report(f"building {source.name}", 0, _STEPS_SHOWN)
            graph = prepare(
                source.path, self._precision, Path(scratch), keep_plugin_nodes=self._plugin
            )
            if graph.has_fp8:
                self._require_fp8()
            require_memory(source.name, graph.weights_bytes)
            log = BuildLog()
            plan, peak_bytes = self._build(source, graph, shapes, log, folder, report)
        path = folder / f"{source.name}{PLAN_SUFFIX}"
        path.write_bytes(plan)
        layers = tuple(parse_layers(log.layers))
        self._reports.append(
            GraphReport(
                graph=source.name,
                profiles=tuple(asdict(profile) for profile in shapes),
                layers=layers,
                attention=count_attention(layers, graph.sites, [p.name for p in shapes]),
                activation_bytes=tuple(log.activation_bytes),
                weights_bytes=log.weights_bytes,
                engine_bytes=path.stat().st_size,
                duration_s=round(time.monotonic() - started, 3),
                peak_host_bytes=peak_bytes,
            )
        )
        if not self._may_decompose:
            require_attention(self._reports[-1])

    def _build(
        self,
        source: GraphSource,
        graph: PreparedGraph,
        shapes: Sequence[Profile],
        log: BuildLog,
        folder: Path,
        report: Report,
    ) -> tuple[Any, int]:
        phases, inspected = Phases(), list[Inspection]()
        logger = make_logger(self._trt, log)

        def work() -> Any:
            if self._plugin:
                register_plugin()
            builder = self._trt.Builder(logger)
            network, _parser = self._parse(builder, graph, logger, log)
            config = self._configure(builder, source.info, shapes)
            config.progress_monitor = make_monitor(self._trt, phases)
            plan = self._compile_network(builder, network, config)
            if plan is not None:
                inspected.append(self._flavor.inspect(self._trt, logger, plan))
            return plan

        def show(done: float) -> None:
            report(f"building {source.name}", round(done * _STEPS_SHOWN), _STEPS_SHOWN)

        plan, peak_bytes = run_watched(work, phases, show)
        if plan is None:
            raise explain_failure(source.name, log.errors, graph.weights_bytes)
        log.layers = log.layers or inspected[0].layers
        if inspected[0].json:
            (folder / f"{source.name}.layers.json").write_text(inspected[0].json, "utf-8")
        return plan, peak_bytes

    def _compile_network(self, builder: Any, network: Any, config: Any) -> Any:
        path = self._timing_cache()
        if path is not None:
            timing_cache.load(config, path)
        plan = builder.build_serialized_network(network, config)
        if path is not None and plan is not None:
            timing_cache.save(config, path)
        return plan

    def _timing_cache(self) -> Path | None:
        if "timing_cache" not in self._flavor.options:
            return None
        folder = self._asked.timing_cache or timing_cache.default_folder()
        return timing_cache.cache_path(folder, self.kind, self._target.gpu_name)

    def _parse(
        self, builder: Any, graph: PreparedGraph, logger: Any, log: BuildLog
    ) -> tuple[Any, Any]:
        """The network, and the parser, which keeps the weights that the network points to."""
        trt = self._trt
        network = builder.create_network(self._flavor.network_flags(trt, plugin=self._plugin))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(graph.model, str(graph.path)):
            faults = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise EngineError(
                f"graph {graph.path.stem}: {self._flavor.kind} {trt.__version__} cannot read it: "
                f"{'; '.join(faults or log.errors)}; export it again with this version"
            )
        connect_lengths(trt, network, graph.sites)
        attentions = dict(attentions_of(trt, network))
        for attention in attentions.values():
            attention.decomposable = self._may_decompose
        if graph.softmax_scale is not None:
            quantized = [attentions[site.name] for site in graph.sites if site.is_fp8]
            quantize_softmax(trt, network, quantized, graph.softmax_scale)
        return network, parser

    def _configure(self, builder: Any, info: GraphInfo, shapes: Sequence[Profile]) -> Any:
        trt, asked = self._trt, self._asked
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        # One stream: passes are captured in CUDA graphs, and nothing in them runs side by side.
        config.max_aux_streams = 0
        if asked.optimization_level is not None:
            config.builder_optimization_level = asked.optimization_level
        if asked.weight_streaming_bytes is not None:
            config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
        self._flavor.configure(trt, config, self._target, asked)
        for shape in shapes:
            profile = builder.create_optimization_profile()
            for tensor in info.inputs:
                profile.set_shape(tensor.name, *shape.shapes(tensor))
            config.add_optimization_profile(profile)
        return config

    def info(self, source: GraphSource, folder: Path) -> GraphInfo:
        return retyped_info(source, self._precision)

    def finish(self, folder: Path) -> None:
        values = {
            "engine": asdict(self.kind),
            "precision": self._precision.name,
            "options": dict(self.options),
            "graphs": [*self._reused, *(report.to_values() for report in self._reports)],
        }
        (folder / REPORT_NAME).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
