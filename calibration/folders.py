"""From an export folder to another one, whose transformer is quantized."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..configs import ModelConfig
from ..errors import UsageError
from ..export.checkpoint_weights import Weights
from ..export.components import Component, expected_shapes, prompt_spec, step_spec
from ..export.exported_weights import ExportedWeights
from ..export.exporter import ExportResult, KeptGraphs, export_components, require_replaceable
from ..export.text_encoder import TextEncoder
from ..export.transformer import Transformer
from ..exports import (
    TOKENIZER_NAME,
    ExportRecord,
    Quantization,
    check_export,
    read_export,
)
from ..precision import precision_named
from .calibration_file import (
    FILE_NAME,
    Calibration,
    load_calibration,
    require_fit,
    save_calibration,
)
from .calibrator import Report, Request, calibrate
from .plot import sensitivity_png
from .quantized import quantized_component
from .recipes import Format, recipe_named
from .sensitivity import SensitivityReport, measure
from .texts import EncodedTexts, SyntheticTexts, TextStates, Tokenize

logger = logging.getLogger(__name__)

REPORT_NAME = "sensitivity"

OpenTokenizer = Callable[[Path, int], Tokenize]
"""(tokenizer file, text_len); the tokenizer belongs to the runtime, which is above."""


@dataclass(frozen=True)
class SourceExport:
    """An export that is not quantized yet."""

    folder: Path
    record: ExportRecord

    @classmethod
    def open(cls, folder: Path) -> "SourceExport":
        record = read_export(folder)
        if record.quantization is not None:
            raise UsageError(
                f"{folder}: quantized already ({record.quantization.recipe}); "
                f"give the export that it was made from"
            )
        if "transformer" not in record.checkpoints:
            raise UsageError(
                f"{folder}: has no transformer, which is what is quantized; "
                f"export with --transformer"
            )
        check_export(folder, record)
        return cls(folder, record)

    @property
    def config(self) -> ModelConfig:
        return self.record.config

    def transformer(self) -> Weights:
        shapes = expected_shapes(lambda: Transformer(self.config.transformer))
        return ExportedWeights(self.folder, self.record, "transformer", shapes)

    def text_states(self, open_tokenizer: OpenTokenizer, request: Request) -> TextStates:
        text_encoder, path = self.config.text_encoder, self.folder / TOKENIZER_NAME
        if text_encoder is None or "text" not in self.record.graphs or not path.is_file():
            logger.warning(
                "%s: no text encoder and tokenizer inside, so the prompts' text states are "
                "synthetic: scales may not fit real prompts",
                self.folder,
            )
            return SyntheticTexts(self.config)
        shapes = expected_shapes(lambda: TextEncoder(text_encoder))
        weights = ExportedWeights(self.folder, self.record, "text_encoder", shapes)
        tokenize = open_tokenizer(path, self.config.transformer.text_len)
        return EncodedTexts(self.config, weights, tokenize, request.compute, request.device)


def progress_file(out: Path) -> Path:
    """Where an interrupted calibration for ``out`` goes on from."""
    return out.with_name(f"{out.name}.unfinished-calibration")


def calibrate_export(
    source: SourceExport,
    request: Request,
    out: Path,
    open_tokenizer: OpenTokenizer,
    report: Report = lambda _what, _done, _total: None,
) -> Calibration:
    require_replaceable(out)
    return calibrate(
        source.config,
        source.transformer(),
        request,
        source.text_states(open_tokenizer, request),
        progress_file(out),
        report,
    )


def measure_sensitivity(
    source: SourceExport,
    calibration: Calibration,
    request: Request,
    error_budget: float,
    open_tokenizer: OpenTokenizer,
    report: Report = lambda _what, _done, _total: None,
) -> SensitivityReport:
    return measure(
        source.config,
        source.transformer(),
        calibration,
        request,
        source.text_states(open_tokenizer, request),
        error_budget,
        report=report,
    )


def read_fitting_calibration(path: Path, source: SourceExport, precision: str) -> Calibration:
    calibration = load_calibration(path)
    checkpoint = source.record.checkpoints["transformer"]
    require_fit(calibration, path, source.config, checkpoint, precision)
    return calibration


def write_quantized(
    source: SourceExport,
    calibration: Calibration,
    out: Path,
    *,
    cache: Format | None = None,
    sensitivity: SensitivityReport | None = None,
    check: bool = True,
    report: Report = lambda _what, _done, _total: None,
) -> ExportResult:
    """The quantized export, with its calibration beside the graphs."""
    config = source.config
    specs = (step_spec(config), prompt_spec(config))
    transformer = Component("transformer", source.transformer(), specs)
    recipe = recipe_named(calibration.recipe)

    def add_files(folder: Path) -> None:
        save_calibration(calibration, folder / FILE_NAME)
        if sensitivity is not None:
            (folder / f"{REPORT_NAME}.json").write_text(sensitivity.to_json(), encoding="utf-8")
            (folder / f"{REPORT_NAME}.png").write_bytes(sensitivity_png(sensitivity))

    result = export_components(
        config,
        [quantized_component(transformer, calibration, cache)],
        out,
        precision_named(source.record.precision),
        quantization=Quantization(
            recipe.format.name, recipe.name, calibration.sha256(), cache.name if cache else None
        ),
        kept=KeptGraphs(
            source.folder,
            source.record,
            frozenset(source.record.checkpoints) - {"transformer"},
        ),
        add_files=add_files,
        # The check's random inputs are no quantized cache.
        check=check and cache is None,
        report=report,
    )
    progress_file(out).unlink(missing_ok=True)
    return result
