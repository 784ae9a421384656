"""``longlive_trt.build``: what the command does, as a function."""

from pathlib import Path
from typing import Any, Literal, get_args

from longlive_trt.basics import Report, unheard
from longlive_trt.configs import TaehvConfig, load_preset
from longlive_trt.configs.presets import BuildNeeds
from longlive_trt.contract import LIGHT_VAE_GRAPHS, VAE_GRAPHS
from longlive_trt.engines.build import BuildResult
from longlive_trt.engines.build import build as build_bundle
from longlive_trt.engines.bundles.bundle import BATCH, read_manifest
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.registry import DEFAULT, KINDS
from longlive_trt.errors import UsageError
from longlive_trt.making.choices import optional_path, require_choice
from longlive_trt.making.quantized import QUANTIZED, BuildPlan, plan_build
from longlive_trt.precision import PRECISIONS
from longlive_trt.reading.ranges import Range

Attention = Literal["standard", "plugin"]
Compatibility = Literal["same-capability", "ampere-plus"]

DEFAULT_PRECISION = "fp32"
OPTIMIZATION = Range(0, 5)
MEMORY_GIB = Range(0, 65_536, above=True)
_GIB = 1 << 30


def build(
    onnx: str | Path,
    out: str | Path,
    *,
    precision: str | None = None,
    preset: str | None = None,
    compute: str | None = None,
    calibration: str | Path | None = None,
    engine: str = DEFAULT.name,
    force: bool = False,
    share_with: str | Path | None = None,
    gpu: str | None = None,
    batch: int = 1,
    attention: Attention | None = None,
    allow_decomposed_attention: bool = False,
    optimization_level: int | None = None,
    workspace_gib: float | None = None,
    weights_gib: float | None = None,
    hardware_compatibility: Compatibility | None = None,
    version_compatible: bool = False,
    refittable: bool = False,
    strip: bool = False,
    lora_ready: bool = False,
    timing_cache: str | Path | None = None,
    command: str = "longlive_trt.build",
    progress: Report = unheard,
    checking: Report = unheard,
) -> BuildResult:
    """Compile the graphs of an export into a bundle of engines, the folder ``out``.

    ``precision``: ``fp32`` (if none is given), ``fp16``, ``bf16``, ``fp8`` or ``int8``; the last
    two calibrate first, unless ``onnx`` is quantized already. ``compute`` is the type of what they
    leave, and ``calibration`` a file of scales for them.
    ``preset``: build what it needs.
    ``engine``: ``onnxruntime``, ``tensorrt`` or ``tensorrt-rtx``; with ``gpu`` (``sm90``), its
    engines are for that architecture.
    ``force``: build even if nothing has changed.
    ``share_with``: a bundle whose engines are used again where they would be the same; those in the
    folder of ``out`` are, without being named.
    ``batch``: videos made side by side.
    ``attention``: the compiler's (``standard``) or this project's kernel (``plugin``).
    ``lora_ready``: keep the transformer's matrices apart, so that LoRA adapters can be exchanged
    while engines run.
    The others are options of TensorRT; ``longlive-trt build --help`` describes them.
    ``command`` is noted in the bundle.
    ``progress`` is called with (what is being done, how much is done, of how much), and
    ``checking`` likewise, with bytes, while the export's files are checked.
    """
    needs = load_preset(preset).build if preset is not None else BuildNeeds()
    precision = _agreed("precision", precision, needs.precision, preset) or DEFAULT_PRECISION
    if needs.attention in get_args(Attention):
        attention = _agreed("attention", attention, needs.attention, preset)
    _require_choices(precision, compute, engine, attention, hardware_compatibility)
    for name, allowed, value in (
        ("batch", BATCH, batch),
        ("optimization_level", OPTIMIZATION, optimization_level),
        ("workspace_gib", MEMORY_GIB, workspace_gib),
        ("weights_gib", MEMORY_GIB, weights_gib),
    ):
        allowed.require(name, value)
    options = BuildOptions(
        gpu=gpu,
        batch=batch,
        attention=attention,
        allow_decomposed_attention=allow_decomposed_attention,
        optimization_level=optimization_level,
        workspace_bytes=_bytes(workspace_gib),
        weight_streaming_bytes=_bytes(weights_gib),
        hardware_compatibility=hardware_compatibility,
        version_compatible=version_compatible,
        refittable=refittable,
        strip=strip,
        lora_ready=lora_ready,
        timing_cache=optional_path(timing_cache),
    )
    plan = plan_build(Path(onnx), precision, compute, optional_path(calibration), engine, gpu)
    _require_export(plan, needs, preset)
    plan.refuse_early(engine, options)
    return build_bundle(
        plan.quantize(progress),
        Path(out),
        plan.compute,
        engine,
        options=options,
        command=command,
        force=force,
        share_with=() if share_with is None else (_bundle(share_with),),
        report=progress,
        checking=checking,
    )


def _bundle(folder: str | Path) -> Path:
    """A folder that is a bundle, whatever its files are worth."""
    read_manifest(Path(folder))
    return Path(folder)


def _agreed(name: str, given: Any, needed: Any, preset: str | None) -> Any:
    if given is not None and needed is not None and given != needed:
        raise UsageError(f"--{name} {given}: preset {preset} needs {needed}; leave one of them out")
    return needed if given is None else given


def _require_export(plan: BuildPlan, needs: BuildNeeds, preset: str | None) -> None:
    """What a preset needs and only an export can bring."""
    quantization = plan.record.quantization
    for name, wanted in (
        ("cache", needs.cache),
        ("attention", None if needs.attention in get_args(Attention) else needs.attention),
    ):
        if wanted is not None and (quantization is None or getattr(quantization, name) != wanted):
            raise UsageError(
                f"{plan.onnx}: preset {preset} needs {name} in {wanted}; make such an export: "
                f"longlive-trt calibrate --onnx {plan.onnx} --precision {plan.precision} "
                f"--{name} {wanted} --out EXPORT"
            )
    graphs = set(plan.record.graphs)
    is_light = isinstance(plan.record.config.vae, TaehvConfig) and graphs >= set(VAE_GRAPHS)
    if needs.decoder == "light" and not (is_light or graphs >= set(LIGHT_VAE_GRAPHS)):
        raise UsageError(
            f"{plan.onnx}: preset {preset} needs the light decoder; export with --light-vae "
            "taew2_1.safetensors too"
        )


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else round(gib * _GIB)


def _require_choices(
    precision: str,
    compute: str | None,
    engine: str,
    attention: str | None,
    hardware_compatibility: str | None,
) -> None:
    require_choice("precision", precision, (*PRECISIONS, *QUANTIZED))
    require_choice("engine", engine, tuple(KINDS))
    for name, value, allowed in (
        ("compute", compute, tuple(PRECISIONS)),
        ("attention", attention, get_args(Attention)),
        ("hardware_compatibility", hardware_compatibility, get_args(Compatibility)),
    ):
        if value is not None:
            require_choice(name, value, allowed)
