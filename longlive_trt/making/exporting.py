"""``longlive_trt.export``: what the command does, as a function."""

import re
from collections.abc import Sequence
from pathlib import Path

from longlive_trt.basics import Report, unheard
from longlive_trt.configs import ModelConfig, load_config
from longlive_trt.configs.dump import config_values
from longlive_trt.configs.loader import configure
from longlive_trt.errors import BundleError, UsageError
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
    model = _loaded(config, overrides)
    if tokenizer is not None:
        _require_usable(Path(tokenizer), model)
    sources = Sources(
        transformer=optional_path(transformer),
        lora=optional_path(lora),
        lora_alpha=lora_alpha,
        use_ema=ema,
        vae=optional_path(vae),
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


def _loaded(config: str | Path | ModelConfig, overrides: Sequence[str]) -> ModelConfig:
    if not isinstance(config, ModelConfig):
        return load_config(config, overrides=overrides)
    return configure(config_values(config), origin=config.name, overrides=overrides)
