"""``longlive_trt.export``: what the command does, as a function."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longlive_trt.basics import Report, unheard
from longlive_trt.configs import ModelConfig, load_config
from longlive_trt.configs.dump import config_values
from longlive_trt.configs.loader import configure
from longlive_trt.configs.schema import TAEHV
from longlive_trt.contract import LIGHT_VAE, VAE
from longlive_trt.errors import BundleError, ConfigError, UsageError
from longlive_trt.export.checkpoints.opening import recognized_decoder
from longlive_trt.export.components import Sources
from longlive_trt.export.exporter import ExportResult
from longlive_trt.export.exporter import export as write_export
from longlive_trt.exports import TOKENIZER_NAME
from longlive_trt.extras import EXPORTING, require_modules
from longlive_trt.making.choices import optional_path
from longlive_trt.precision import precision_named
from longlive_trt.runtime.prompting.tokenizer import PromptTokenizer

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def export(
    config: str | Path | ModelConfig,
    out: str | Path,
    *,
    transformer: str | Path | None = None,
    lora: str | Path | None = None,
    lora_alpha: float | None = None,
    ema: bool = False,
    vae: str | Path | None = None,
    light_vae: str | Path | None = None,
    encoder: bool = True,
    text_encoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
    random_weights: int | None = None,
    precision: str = "fp32",
    check: bool = True,
    overrides: Sequence[str] = (),
    progress: Report = unheard,
) -> ExportResult:
    """Turn a checkpoint into ONNX graphs, in the folder ``out``.

    ``config``: a YAML file, a shipped model's name, or the configuration itself.
    ``transformer``, ``vae``, ``text_encoder``: checkpoints; what has none is left out.
    ``light_vae``: a second decoder, for live previews. A decoder's tensors tell its kind.
    ``encoder``: the VAE's encoder too, where its checkpoint has one: for videos that begin with a
    clip.
    ``lora``, ``lora_alpha``: an adapter that is merged in float32, and another alpha for it.
    ``ema``: take the checkpoint's EMA weights.
    ``tokenizer``: the folder that holds tokenizer.json.
    ``random_weights``: a seed; weights are made up instead.
    ``precision``: of the weights on disk; ``build`` can still choose another.
    ``check``: compare every graph with torch.
    ``overrides``: ``latent.height=30`` and the like.
    ``progress`` is called with (what is being done, how much is done, of how much).
    """
    require_modules(EXPORTING)
    decoders = {VAE: optional_path(vae), LIGHT_VAE: optional_path(light_vae)}
    others = (transformer, text_encoder, random_weights)
    has_decoders_only = all(value is None for value in others)
    # What is not there, or not wanted, is told of where the others are opened.
    there = {s: path for s, path in decoders.items() if path is not None and path.exists()}
    known = there if random_weights is None else {}
    model = _loaded(config, overrides, known, has_decoders_only)
    if tokenizer is not None:
        _require_usable(Path(tokenizer), model)
    sources = Sources(
        transformer=optional_path(transformer),
        lora=optional_path(lora),
        lora_alpha=lora_alpha,
        use_ema=ema,
        vae=decoders[VAE],
        light_vae=decoders[LIGHT_VAE],
        encoder=encoder,
        text_encoder=optional_path(text_encoder),
        random_seed=random_weights,
    )
    return write_export(
        model,
        sources,
        Path(out),
        precision_named(precision),
        tokenizer=optional_path(tokenizer),
        check=check,
        report=progress,
    )


def _require_usable(tokenizer: Path, model: ModelConfig) -> None:
    """Before hours of work: a bundle whose tokenizer cannot be used reads no prompt."""
    path = tokenizer / TOKENIZER_NAME if tokenizer.is_dir() else tokenizer
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file; --tokenizer takes the folder that holds {TOKENIZER_NAME}"
            f"{_hub_hint(tokenizer)}"
        )
    try:
        needed = PromptTokenizer.load(path, model.transformer.text_len).vocab
    except BundleError as error:
        raise UsageError(f"--tokenizer {error}") from None
    if model.text_encoder is not None and needed > model.text_encoder.vocab:
        raise UsageError(
            f"--tokenizer {path}: has {needed} tokens, and the text encoder of {model.name} knows "
            f"{model.text_encoder.vocab}; give the tokenizer that it was trained with"
        )


def _hub_hint(path: Path) -> str:
    """For the name of a repository in the place of a folder."""
    if not _HUB_NAME.fullmatch(str(path)) or path.exists():
        return ""
    folder = path.name
    return (
        f". {path} looks like a model on a hub: Wan's checkpoint has a folder of that name; or "
        f"run `hf download {path} {TOKENIZER_NAME} --local-dir {folder}` and give "
        f"--tokenizer {folder}"
    )


def _loaded(
    config: str | Path | ModelConfig,
    overrides: Sequence[str],
    decoders: Mapping[str, Path],
    has_decoders_only: bool,
) -> ModelConfig:
    facts = {
        section: facts
        for section, path in decoders.items()
        if (facts := recognized_decoder(path)) is not None
    }
    # A configuration has a section for Wan's own VAE, which says what fits.
    found = {s: f for s, f in facts.items() if s == LIGHT_VAE or f["kind"] == TAEHV}
    try:
        model = _configured(config, overrides, found)
    except ConfigError:
        if not has_decoders_only:
            raise
        try:
            # Patches are the transformer's: without it, latents may be of any size.
            model = _configured(config, (*overrides, "transformer.patch=[1, 1, 1]"), found)
        except ConfigError:
            model = _configured(config, overrides, found)
    _require_kinds(model, decoders, facts)
    return model


def _configured(
    config: str | Path | ModelConfig,
    overrides: Sequence[str],
    found: Mapping[str, Mapping[str, Any]],
) -> ModelConfig:
    if not isinstance(config, ModelConfig):
        return load_config(config, overrides=overrides, found=found)
    return configure(config_values(config), origin=config.name, overrides=overrides, found=found)


def _require_kinds(
    model: ModelConfig,
    decoders: Mapping[str, Path],
    facts: Mapping[str, Mapping[str, Any]],
) -> None:
    for section, said in facts.items():
        config = model.decoder(section)
        if config is not None and config.kind != said["kind"]:
            raise ConfigError(
                f"{decoders[section]}: a decoder of kind {said['kind']}, and the configuration "
                f"says {section}.kind={config.kind}; leave that out, or give a file of that kind"
            )
