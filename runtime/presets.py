"""Whether a bundle can do what a preset asks for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from longlive_trt.configs import ModelConfig, Preset, load_preset, shipped_presets
from longlive_trt.configs.dump import config_values
from longlive_trt.configs.loader import configure
from longlive_trt.console.printing import plain
from longlive_trt.contract import K_CACHE, STEP, numbered
from longlive_trt.dtypes import FLOAT8, INT8
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.errors import UsageError
from longlive_trt.runtime.decoding.choice import decoders_of

_EIGHT_BITS = ("fp8", "int8")


def runtime_config(
    base: ModelConfig,
    preset: str | None,
    overrides: Sequence[str] = (),
    spell: Callable[[str], str] = str,
) -> ModelConfig:
    """A bundle's configuration, with what can change without new engines."""
    wanted = configure(config_values(base), origin="the bundle", preset=preset, overrides=overrides)
    fixed = replace(wanted, rollout=replace(wanted.rollout, rope=base.rollout.rope), fps=base.fps)
    if replace(fixed, rollout=base.rollout) != base or wanted.rollout.rope != base.rollout.rope:
        raise UsageError(
            f"{spell('overrides')} and {spell('preset')} can change rollout.* (but not "
            "rollout.rope) and fps; everything else is compiled into the bundle: export and build "
            "again"
        )
    return wanted


def run_as(bundle: Bundle, preset: str) -> Bundle:
    """The bundle, as if it had been exported with a preset's settings."""
    require_served(bundle, preset)
    config = runtime_config(bundle.config, preset)
    return replace(bundle, manifest=replace(bundle.manifest, config=config))


def require_served(bundle: Bundle, name: str) -> None:
    """Refuse, with the reason and the command that makes the bundle, what it cannot do."""
    if reason := unserved(bundle, load_preset(name)):
        raise UsageError(f"preset {plain(name)}: {reason[0]}; {reason[1].format(name=plain(name))}")


def served_presets(bundle: Bundle) -> list[str]:
    """The shipped ones that this bundle can do."""
    return [name for name in shipped_presets() if unserved(bundle, load_preset(name)) is None]


def unserved(bundle: Bundle, preset: Preset) -> tuple[str, str] | None:
    """What is missing, and what to do about it."""
    rope = preset.rollout.get("rope", bundle.config.rollout.rope)
    if rope != bundle.config.rollout.rope:
        return (
            f"needs rollout.rope={rope}, and {bundle.folder} was exported with "
            f"{bundle.config.rollout.rope}",
            f"export again with --set rollout.rope={rope}, and build",
        )
    missing = next(_missing(bundle, preset), None)
    if missing is None:
        return None
    wanted, found = missing
    return (
        f"needs a bundle with {wanted}, and {bundle.folder} has {found}",
        "make one: longlive-trt build --onnx EXPORT --preset {name} --out BUNDLE",
    )


def _missing(bundle: Bundle, preset: Preset) -> Iterator[tuple[str, str]]:
    needs, manifest = preset.build, bundle.manifest
    for what, wanted, found in (
        ("precision", needs.precision, manifest.precision),
        ("a cache in", needs.cache, _cache_of(bundle)),
        ("attention", needs.attention, str(manifest.options.get("attention") or "standard")),
        ("the decoder", needs.decoder, _decoder_of(bundle, needs.decoder)),
    ):
        if wanted is not None and wanted != found:
            yield f"{what} {wanted}", found


def _cache_of(bundle: Bundle) -> str:
    """What keys are kept in: eight bits, or the type that is computed with."""
    graph = bundle.manifest.graphs.get(STEP)
    name = numbered(K_CACHE, 0)
    kinds = [tensor.dtype for tensor in graph.inputs if tensor.name == name] if graph else []
    known = {FLOAT8.recorded: "fp8", INT8.recorded: "int8"}
    return known.get(kinds[0], kinds[0]) if kinds else "none"


def _decoder_of(bundle: Bundle, wanted: str | None) -> str:
    """The wanted one, or what there is instead."""
    held = decoders_of(bundle)
    return wanted if wanted in held else next(iter(held), "none")
