"""LongLive video generation on compiled engines.

    import longlive_trt as ll

    with ll.load("bundle/") as pipeline, pipeline.video("a red car at dusk", seconds=10) as video:
        for block in video:
            show(block.frames)

docs/python.md describes the names. What they stand for is imported when they are first used.
"""

TYPE_CHECKING = False  # typing's own costs more than all the rest of this file
if TYPE_CHECKING:
    from longlive_trt import errors as errors
    from longlive_trt.engines.build import BuildResult as BuildResult
    from longlive_trt.errors import LongLiveError as LongLiveError
    from longlive_trt.export.exporter import ExportResult as ExportResult
    from longlive_trt.loading import load as load
    from longlive_trt.making.building import build as build
    from longlive_trt.making.calibrating import CalibrationResult as CalibrationResult
    from longlive_trt.making.calibrating import calibrate as calibrate
    from longlive_trt.making.exporting import export as export
    from longlive_trt.runtime.pipeline import Pipeline as Pipeline
    from longlive_trt.runtime.video import Video as Video
    from longlive_trt.runtime.video import VideoBlock as VideoBlock
    from longlive_trt.runtime.video import VideoCheckpoint as VideoCheckpoint

__version__ = "0.1.0"

__all__ = [
    "BuildResult",
    "CalibrationResult",
    "ExportResult",
    "LongLiveError",
    "Pipeline",
    "Video",
    "VideoBlock",
    "VideoCheckpoint",
    "__version__",
    "build",
    "calibrate",
    "errors",
    "export",
    "load",
]

_HOMES = {
    "BuildResult": "engines.build",
    "CalibrationResult": "making.calibrating",
    "ExportResult": "export.exporter",
    "LongLiveError": "errors",
    "Pipeline": "runtime.pipeline",
    "Video": "runtime.video",
    "VideoBlock": "runtime.video",
    "VideoCheckpoint": "runtime.video",
    "build": "making.building",
    "calibrate": "making.calibrating",
    "load": "loading",
}
# The area `export` can be called, because the function has its name.
_MODULES = {"errors", "export"}


def __getattr__(name: str) -> object:
    if name not in _HOMES and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from longlive_trt.extras import with_install_hint

    with with_install_hint():
        module = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
