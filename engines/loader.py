"""A bundle's graphs as engines, whatever compiled them."""

from typing import Literal

from longlive_trt.engines.base import Engine
from longlive_trt.engines.bundles.bundle import Bundle, Manifest
from longlive_trt.engines.ort import cpu as onnxruntime
from longlive_trt.engines.trt.engine import PLAN_SUFFIX, TensorRtEngine
from longlive_trt.engines.trt.flavors import FLAVORS
from longlive_trt.errors import BundleError, PluginError
from longlive_trt.plugins.cuda.driver import DeviceFacts, device_facts
from longlive_trt.plugins.cuda.streams import Stream
from longlive_trt.plugins.onnxruntime_bridge import LIBRARY_NAME

DeviceChoice = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[DeviceChoice, ...] = ("auto", "cpu", "cuda")


def runs_on_gpu(bundle: Bundle, device: DeviceChoice) -> bool:
    """Where the engines run: they were compiled for a GPU, or one was asked for."""
    target = bundle.manifest.engine.target
    if device == "cpu" and target != CPU:
        raise BundleError(
            f"{bundle.folder}: engines for {target} do not run on a CPU; leave --device out, or "
            f"build a bundle for CPUs (`longlive-trt build --engine {onnxruntime.KIND}` without "
            f"--gpu)"
        )
    return target != CPU or device == "cuda"


CPU = "cpu"


def require_runnable(bundle: Bundle, device: DeviceChoice = "auto") -> None:
    """Refuse a bundle whose engines cannot run here, before any of them is loaded."""
    engine = bundle.manifest.engine
    on_gpu = runs_on_gpu(bundle, device)
    if engine.kind == onnxruntime.KIND:
        onnxruntime.require_compatible(engine.version)
        if on_gpu:
            _require_gpu_provider(bundle)
    elif engine.kind in FLAVORS:
        _require_plans_runnable(bundle)
    else:
        raise BundleError(
            f"{bundle.folder}: engines of kind {engine.kind}, which this version cannot run; "
            f"build with --engine {onnxruntime.KIND}"
        )


def load_engine(
    bundle: Bundle,
    graph: str,
    *,
    threads: int | None = None,
    stream: Stream | None = None,
) -> Engine:
    """One graph's engine: with a stream, on its GPU."""
    manifest = bundle.manifest
    if manifest.engine.kind in FLAVORS:
        assert stream is not None  # these run on GPUs only
        return TensorRtEngine(
            bundle.folder / f"{graph}{PLAN_SUFFIX}",
            manifest.graphs[graph],
            FLAVORS[manifest.engine.kind],
            manifest.options,
            stream,
        )
    path = bundle.folder / f"{graph}{onnxruntime.SUFFIX}"
    if stream is None:
        return onnxruntime.OnnxRuntimeEngine(path, threads=threads)
    from longlive_trt.engines.ort.gpu import OnnxRuntimeCudaEngine

    library = bundle.folder / LIBRARY_NAME
    with_kernels = graph in manifest.options.get("kernel_graphs", ())
    return OnnxRuntimeCudaEngine(path, stream, library=library if with_kernels else None)


def _require_gpu_provider(bundle: Bundle) -> None:
    here = _gpu_here(bundle)
    target = bundle.manifest.engine.target
    if target not in (CPU, _architecture(here)):
        raise BundleError(
            f"{bundle.folder}: engines for {target}, and this machine has {here.name} "
            f"({_architecture(here)}); build with --gpu {_architecture(here)}"
        )
    from longlive_trt.engines.ort.gpu import load_libraries

    load_libraries()


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
    here = _gpu_here(bundle)
    if not _is_for(manifest, here):
        raise BundleError(
            f"{bundle.folder}: engines for {wanted}, and this machine has {here.name} "
            f"({_architecture(here)}); {_remedy(manifest)}"
        )


def _gpu_here(bundle: Bundle) -> DeviceFacts:
    manifest = bundle.manifest
    try:
        return device_facts()
    except PluginError as error:
        target = manifest.options.get("gpu_name") or manifest.engine.target
        wanted = "a GPU was asked for" if target == CPU else f"engines for {target}"
        remedy = (
            "use --device cpu"
            if target == CPU
            else f"run `longlive-trt pull --auto`, or build with --engine {onnxruntime.KIND} and "
            "without --gpu for a CPU"
        )
        raise BundleError(
            f"{bundle.folder}: {wanted}, and this machine has no GPU that can be used "
            f"({error}); {remedy}"
        ) from None


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
