"""What a build in fp8 or int8 does beforehand: find or make a quantized export."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from longlive_trt.basics import Report
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.registry import KINDS, compiler_named
from longlive_trt.errors import UsageError
from longlive_trt.exports import ExportRecord, Quantization, read_export
from longlive_trt.extras import EXPORTING, QUANTIZING, require_modules
from longlive_trt.precision import precision_named

logger = logging.getLogger(__name__)

QUANTIZED = ("fp8", "int8")


@dataclass(frozen=True)
class BuildPlan:
    onnx: Path
    record: ExportRecord
    precision: str
    compute: str
    calibration: Path | None

    def refuse_early(self, engine: str, options: BuildOptions) -> None:
        """Ask the compiler, and for what quantizing takes, before hours of it."""
        if self.precision not in QUANTIZED:
            return
        if self.record.quantization is None:
            has_scales = self.calibration is not None or self._is_current(
                quantized_folder(self.onnx, self.precision)
            )
            require_modules(EXPORTING if has_scales else QUANTIZING)
        compute = precision_named(self.compute)
        compiler = compiler_named(engine, options, compute, self.record.config)
        wanted = Quantization(self.precision, self.precision, "")
        compiler.check(replace(self.record, quantization=wanted))

    def quantize(self, report: Report) -> Path:
        """The folder to build from."""
        if self.precision not in QUANTIZED or self.record.quantization is not None:
            return self.onnx
        # torch and ModelOpt come with these, and no other build needs them.
        from longlive_trt.calibration.calibrator import CalibrationRequest
        from longlive_trt.calibration.folders import (
            SourceExport,
            begin_tracing,
            calibrate_export,
            read_fitting_calibration,
            write_quantized,
        )
        from longlive_trt.calibration.recipes import Extras, recipe_named
        from longlive_trt.export.tracers import Tracers
        from longlive_trt.making.calibrating import default_device, load_prompts, open_tokenizer
        from longlive_trt.making.estimates import describe_calibration

        source, folder = SourceExport.open(self.onnx), quantized_folder(self.onnx, self.precision)
        device, compute = default_device()
        with Tracers() as tracers:
            if self.calibration is not None:
                scales = read_fitting_calibration(self.calibration, source, self.precision)
            elif self._is_current(folder):
                logger.info("%s: quantized earlier; used again", folder)
                return folder
            else:
                request = CalibrationRequest(
                    recipe=recipe_named(self.precision),
                    prompts=tuple(load_prompts(None)),
                    compute=compute,
                    device=device,
                )
                logger.warning(
                    "%s is not quantized and no --calibration is given: calibrating with the "
                    "shipped prompts (%s), into %s",
                    self.onnx,
                    describe_calibration(source.config, request),
                    folder,
                )
                begin_tracing(tracers, source, request, Extras())
                scales = calibrate_export(source, request, folder, open_tokenizer, report)
            write_quantized(source, scales, folder, device=device, report=report, tracers=tracers)
        return folder

    def _is_current(self, folder: Path) -> bool:
        try:
            record = read_export(folder)
        except UsageError:
            return False
        quantization = record.quantization
        return (
            quantization is not None
            and quantization.precision == self.precision
            and record.checkpoints == self.record.checkpoints
            and record.config == self.record.config
        )


def quantized_folder(onnx: Path, precision: str) -> Path:
    return onnx.with_name(f"{onnx.name}-{precision}")


def plan_build(
    onnx: Path,
    precision: str,
    compute: str | None,
    calibration: Path | None,
    engine: str,
    gpu: str | None = None,
) -> BuildPlan:
    record = read_export(onnx)
    quantized = record.quantization.precision if record.quantization else None
    if precision not in QUANTIZED:
        if compute is not None or calibration is not None:
            raise UsageError(
                f"--compute and --calibration go with --precision fp8 or int8, not {precision}; "
                f"leave them out"
            )
        if quantized is not None:
            raise UsageError(
                f"{onnx}: quantized to {quantized}; build it with --precision {quantized} "
                f"--compute {precision}, or give the export that it was made from"
            )
        return BuildPlan(onnx, record, precision, precision, None)
    if quantized not in (None, precision):
        raise UsageError(f"{onnx}: quantized to {quantized}; build it with --precision {quantized}")
    if quantized is not None and calibration is not None:
        raise UsageError(
            f"{onnx}: quantized already, with its own calibration; leave --calibration out, "
            f"or give the export that it was made from"
        )
    default = "bf16" if KINDS[engine].needs_gpu or gpu is not None else "fp32"
    return BuildPlan(onnx, record, precision, compute or default, calibration)
