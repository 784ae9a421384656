"""A bundle's graphs as engines, whatever compiled them."""

from ..errors import BundleError, PluginError
from ..plugins.driver import DeviceFacts, device_facts
from . import onnxruntime
from .base import Engine
from .bundle import Bundle, Manifest
from .tensorrt_engine import PLAN_SUFFIX, TensorRtEngine
from .tensorrt_flavors import FLAVORS


def require_runnable(bundle: Bundle) -> None:
    """Refuse a bundle whose engines cannot run here, before any of them is loaded."""
    engine = bundle.manifest.engine
    if engine.kind == onnxruntime.KIND:
        onnxruntime.require_compatible(engine.version)
    elif engine.kind in FLAVORS:
        _require_plans_runnable(bundle)
    else:
        raise BundleError(
            f"{bundle.folder}: engines of kind {engine.kind}, which this version cannot run; "
            f"build with --engine {onnxruntime.KIND}"
        )


def load_engine(bundle: Bundle, graph: str, *, threads: int | None = None) -> Engine:
    manifest = bundle.manifest
    if manifest.engine.kind in FLAVORS:
        return TensorRtEngine(
            bundle.folder / f"{graph}{PLAN_SUFFIX}",
            manifest.graphs[graph],
            FLAVORS[manifest.engine.kind],
            manifest.options,
        )
    path = bundle.folder / f"{graph}{onnxruntime.SUFFIX}"
    return onnxruntime.OnnxRuntimeEngine(path, threads=threads)


def _require_plans_runnable(bundle: Bundle) -> None:
    manifest = bundle.manifest
    if manifest.options.get("strip"):
        raise BundleError(
            f"{bundle.folder}: its engines were built without their weights (--strip); run "
            f"`longlive-trt refit {bundle.folder} --onnx FOLDER --out BUNDLE` on this machine"
        )
    found = str(FLAVORS[manifest.engine.kind].load().__version__)
    if not _runs_with(manifest, found):
        raise BundleError(
            f"{bundle.folder}: engines of {manifest.engine.kind} {manifest.engine.version}, and "
            f"{found} is installed; {_remedy(manifest)}"
        )
    _require_gpu(bundle)


def _runs_with(manifest: Manifest, found: str) -> bool:
    built = manifest.engine.version
    if not manifest.options.get("version_compatible"):
        return found == built
    return _numbers(found)[:1] == _numbers(built)[:1] and _numbers(found) >= _numbers(built)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _require_gpu(bundle: Bundle) -> None:
    manifest = bundle.manifest
    wanted = manifest.options.get("gpu_name") or manifest.engine.target
    try:
        here = device_facts()
    except PluginError as error:
        raise BundleError(
            f"{bundle.folder}: engines for {wanted}, and this machine has no GPU that can be used "
            f"({error}); {_remedy(manifest)}, or build with --engine {onnxruntime.KIND}"
        ) from None
    if not _is_for(manifest, here):
        raise BundleError(
            f"{bundle.folder}: engines for {wanted}, and this machine has {here.name} "
            f"({_architecture(here)}); {_remedy(manifest)}"
        )


def _is_for(manifest: Manifest, here: DeviceFacts) -> bool:
    """TensorRT's engines are for one GPU model, unless they were built for more."""
    compatibility = manifest.options.get("hardware_compatibility")
    if compatibility == "ampere-plus":
        return here.capability >= (8, 0)
    same = _architecture(here) == manifest.engine.target
    return same and (bool(compatibility) or manifest.options.get("gpu_name") in (None, here.name))


def _architecture(here: DeviceFacts) -> str:
    return "sm{}{}".format(*here.capability)


def _remedy(manifest: Manifest) -> str:
    return (
        f"run `longlive-trt build --engine {manifest.engine.kind} --precision "
        f"{manifest.precision}` on this machine, or `longlive-trt pull --auto`"
    )
