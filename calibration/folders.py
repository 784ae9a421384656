"""From an export folder to another one, whose transformer is quantized."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from longlive_trt.basics import Report
from longlive_trt.calibration.calibration_file import (
    FILE_NAME,
    Calibration,
    load_calibration,
    require_fit,
    save_calibration,
)
from longlive_trt.calibration.calibrator import CalibrationRequest, calibrate
from longlive_trt.calibration.plot import sensitivity_png
from longlive_trt.calibration.quantized import (
    LayerSwapper,
    quantized_component,
    quantized_specs,
)
from longlive_trt.calibration.recipes import Extras, recipe_named
from longlive_trt.calibration.sensitivity import SensitivityReport, measure
from longlive_trt.calibration.targets import select_layers
from longlive_trt.calibration.texts import EncodedTexts, SyntheticTexts, TextStates, Tokenize
from longlive_trt.calibration.vae.decoder import (
    convolutions,
    quantized_vae_component,
    quantized_vae_specs,
    select_convolutions,
)
from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.contract import TEXT, TEXT_ENCODER, TRANSFORMER, VAE
from longlive_trt.errors import UsageError
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.export.components import (
    Component,
    expected_shapes,
    prompt_spec,
    step_spec,
    vae_specs,
)
from longlive_trt.export.exported_weights import ExportedWeights
from longlive_trt.export.exporter import ExportResult, KeptGraphs, export_components
from longlive_trt.export.models.text_encoder import TextEncoder
from longlive_trt.export.models.transformer import Transformer
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.export.tracers import Tracers
from longlive_trt.exports import (
    TOKENIZER_NAME,
    ExportRecord,
    Quantization,
    check_export,
    read_export,
)
from longlive_trt.files import EXPORT, require_replaceable
from longlive_trt.precision import precision_named

logger = logging.getLogger(__name__)

REPORT_NAME = "sensitivity"
_NOTHING = Extras()

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
        if TRANSFORMER not in record.checkpoints:
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
        return ExportedWeights(self.folder, self.record, TRANSFORMER, shapes)

    @property
    def vae_config(self) -> VaeConfig:
        """Of the decoder that can be quantized."""
        vae = self.config.vae
        if vae is None or VAE not in self.record.checkpoints:
            raise UsageError(
                f"{self.folder}: has no VAE to quantize; export with --vae, or leave "
                f"--vae-precision out"
            )
        if not isinstance(vae, VaeConfig):
            raise UsageError(
                f"{self.folder}: its decoder is of kind {vae.kind}, which stays in 16 bits; leave "
                "--vae-precision out"
            )
        return vae

    def vae(self) -> Weights:
        vae = self.vae_config
        shapes = expected_shapes(lambda: VaeDecoder(vae))
        return ExportedWeights(self.folder, self.record, VAE, shapes)

    def text_states(self, open_tokenizer: OpenTokenizer, request: CalibrationRequest) -> TextStates:
        text_encoder, path = self.config.text_encoder, self.folder / TOKENIZER_NAME
        if text_encoder is None or TEXT not in self.record.graphs or not path.is_file():
            logger.warning(
                "%s: no text encoder and tokenizer inside, so the prompts' text states are "
                "synthetic: scales may not fit real prompts",
                self.folder,
            )
            return SyntheticTexts(self.config)
        shapes = expected_shapes(lambda: TextEncoder(text_encoder))
        weights = ExportedWeights(self.folder, self.record, TEXT_ENCODER, shapes)
        tokenize = open_tokenizer(path, self.config.transformer.text_len)
        return EncodedTexts(self.config, weights, tokenize, request.compute, request.device)


def progress_file(out: Path) -> Path:
    """Where an interrupted calibration for ``out`` goes on from."""
    return out.with_name(f"{out.name}.unfinished-calibration")


def calibrate_export(
    source: SourceExport,
    request: CalibrationRequest,
    out: Path,
    open_tokenizer: OpenTokenizer,
    report: Report = lambda _what, _done, _total: None,
    *,
    with_vae: bool = False,
) -> Calibration:
    require_replaceable(out, EXPORT)
    return calibrate(
        source.config,
        source.transformer(),
        request,
        source.text_states(open_tokenizer, request),
        progress_file(out),
        report,
        source.vae() if with_vae else None,
    )


def measure_sensitivity(
    source: SourceExport,
    calibration: Calibration,
    request: CalibrationRequest,
    error_budget: float,
    open_tokenizer: OpenTokenizer,
    report: Report = lambda _what, _done, _total: None,
    extras: Extras = _NOTHING,
) -> SensitivityReport:
    return measure(
        source.config,
        source.transformer(),
        calibration,
        request,
        source.text_states(open_tokenizer, request),
        error_budget,
        report=report,
        extras=Extras(attention=extras.attention),
    )


def read_fitting_calibration(path: Path, source: SourceExport, precision: str) -> Calibration:
    calibration = load_calibration(path)
    checkpoint = source.record.checkpoints[TRANSFORMER]
    require_fit(calibration, path, source.config, checkpoint, precision)
    return calibration


def require_extras(source: SourceExport, extras: Extras) -> None:
    """Refuse at once what rollouts would be in vain for."""
    if extras.vae is not None:
        select_convolutions(source.vae_config, extras.vae_exclude)


def begin_tracing(
    tracers: Tracers, source: SourceExport, request: CalibrationRequest, extras: Extras
) -> None:
    """What ``write_quantized`` will ask for: its graphs depend on no number that rollouts find."""
    config, recipe = source.config, request.recipe
    extras = extras.of(config.rollout)
    layers = select_layers(config.transformer, request.selection)
    smoothed = frozenset(layers if recipe.smoothing is not None else ())
    adapt = LayerSwapper(recipe.format, layers, smoothed, extras)
    tracers.begin(quantized_specs((step_spec(config), prompt_spec(config)), adapt))
    if extras.vae is not None:
        chosen = select_convolutions(source.vae_config, extras.vae_exclude)
        tracers.begin(quantized_vae_specs(vae_specs(config), chosen, extras.vae))


def write_quantized(
    source: SourceExport,
    calibration: Calibration,
    out: Path,
    *,
    extras: Extras = _NOTHING,
    sensitivity: SensitivityReport | None = None,
    check: bool = True,
    device: str = "cpu",
    report: Report = lambda _what, _done, _total: None,
    tracers: Tracers | None = None,
) -> ExportResult:
    """The quantized export, with its calibration beside the graphs.

    ``device``: where graphs and torch are compared. ``tracers``: they may have begun already.
    """
    config = source.config
    extras = extras.of(config.rollout)
    parts = _quantized_parts(source, calibration, extras)
    recipe = recipe_named(calibration.recipe)

    def add_files(folder: Path) -> None:
        save_calibration(calibration, folder / FILE_NAME)
        if sensitivity is not None:
            (folder / f"{REPORT_NAME}.json").write_text(sensitivity.to_json(), encoding="utf-8")
            (folder / f"{REPORT_NAME}.png").write_bytes(sensitivity_png(sensitivity))

    result = export_components(
        config,
        parts,
        out,
        precision_named(source.record.precision),
        quantization=Quantization(
            recipe.format.name,
            recipe.name,
            calibration.sha256(),
            cache=extras.kept["k"].name if "k" in extras.kept else None,
            attention=extras.attention.name if extras.attention else None,
            vae=extras.vae.name if extras.vae else None,
        ),
        kept=KeptGraphs(
            source.folder,
            source.record,
            frozenset(source.record.checkpoints) - {part.name for part in parts},
        ),
        add_files=add_files,
        check=check,
        device=device,
        report=report,
        tracers=tracers,
    )
    progress_file(out).unlink(missing_ok=True)
    return result


def _quantized_parts(
    source: SourceExport, calibration: Calibration, extras: Extras
) -> list[Component]:
    config = source.config
    specs = (step_spec(config), prompt_spec(config))
    transformer = Component(TRANSFORMER, source.transformer(), specs)
    parts = [quantized_component(transformer, calibration, extras)]
    if extras.vae is not None:
        vae = Component(VAE, source.vae(), vae_specs(config))
        if calibration.vae is None:
            raise UsageError(
                "the calibration has no ranges of the VAE; calibrate again with --vae-precision"
            )
        decoder = source.vae_config
        calibration.vae.require_fit(convolutions(decoder), vae.weights.digest())
        parts.append(
            quantized_vae_component(vae, calibration.vae, decoder, extras.vae, extras.vae_exclude)
        )
    return parts
