"""The calibration: rollouts of all videos, resumed where it was interrupted, and their ranges."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from longlive_trt.basics import Report
from longlive_trt.calibration.calibration_file import Calibration, Origin, value_hash
from longlive_trt.calibration.modelopt import RangeWatcher
from longlive_trt.calibration.prompts import prompts_sha256
from longlive_trt.calibration.recipes import Recipe
from longlive_trt.calibration.targets import Selection, linear_layers, select_layers
from longlive_trt.calibration.texts import TextStates
from longlive_trt.calibration.vae.decoder import VaeWatcher
from longlive_trt.calibration.values import merged
from longlive_trt.calibration.videos import Video, plan_videos, run_video
from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.errors import UsageError
from longlive_trt.export.checkpoints.weights import Weights, fill
from longlive_trt.export.components import SEEDS
from longlive_trt.export.models.transformer import Transformer
from longlive_trt.export.torch_types import TORCH_TYPES
from longlive_trt.files import publish_file
from longlive_trt.reading.documents import parse_json
from longlive_trt.reading.failures import ReadingError
from longlive_trt.reading.ranges import Range
from longlive_trt.reading.shapes import field as checked
from longlive_trt.reading.tensors import FLOATS, TensorHeader, read_header

logger = logging.getLogger(__name__)

_PROGRESS_FORMAT = 3
BLOCKS = Range(1, 1000)


@dataclass(frozen=True)
class CalibrationRequest:
    recipe: Recipe
    prompts: tuple[str, ...]
    selection: Selection = field(default_factory=Selection)
    seed: int = 0
    blocks: int | None = None
    """Of each video; None is just enough for the steady state and a switch in it."""
    compute: str = "fp32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UsageError("no prompts to calibrate with; give a file with one prompt a line")
        BLOCKS.require("--blocks", self.blocks)
        SEEDS.require("--seed", self.seed)


@dataclass
class CalibrationProgress:
    """What the finished videos showed; kept in a file until the calibration is complete."""

    channels: dict[str, Tensor]
    by_video: list[dict[str, float]]

    def add(self, seen: Mapping[str, Tensor]) -> None:
        for name, new in seen.items():
            known = self.channels.get(name)
            self.channels[name] = (
                new if known is None else merged(name, known, new, len(self.by_video))
            )
        self.by_video.append({name: float(amax.amax()) for name, amax in seen.items()})

    def statistics(self) -> dict[str, dict[str, float]]:
        return {
            name: {
                "largest": max(video[name] for video in self.by_video),
                "mean": sum(video[name] for video in self.by_video) / len(self.by_video),
                "least": min(video[name] for video in self.by_video),
            }
            for name in self.channels
        }


def calibrate(
    config: ModelConfig,
    weights: Weights,
    request: CalibrationRequest,
    texts: TextStates,
    progress_file: Path,
    report: Report = lambda _what, _done, _total: None,
    vae: Weights | None = None,
) -> Calibration:
    """``vae`` is given where its convolutions are to be watched too."""
    layers = select_layers(config.transformer, request.selection)
    videos = plan_videos(len(request.prompts), config, request.blocks)
    origin = _origin(config, weights, request, videos, texts, vae)
    progress = _resume(progress_file, origin)
    states = texts.of(request.prompts)
    model = load_model(config, weights, request.compute, request.device)
    # All layers are watched, so that another choice of layers needs no other rollouts.
    watcher = RangeWatcher(model, linear_layers(config.transformer), config)
    vae_watcher = _vae_watcher(config, vae, request)
    for video in videos[len(progress.by_video) :]:
        report("calibrating", video.number, len(videos))
        run = partial(run_video, model, config, video, states, request.seed, watcher.observe_heads)
        what = _described(video, request.prompts)
        frames: list[Tensor] = []
        seen = watcher.watch(partial(_keep_frames, run, frames), what)
        if vae_watcher is not None:
            seen |= vae_watcher.watch(torch.cat(frames, dim=1), what)
        progress.add(seen)
        _save_progress(progress_file, origin, progress)
    report("computing scales", len(videos), len(videos))
    ranges = watcher.ranges(progress.channels, request.recipe)
    return Calibration(
        origin=origin,
        recipe=request.recipe.name,
        layers={name: ranges[name] for name in layers},
        channels=progress.channels,
        statistics=progress.statistics(),
        versions={name: version(name) for name in ("nvidia-modelopt", "torch")},
        vae=vae_watcher.ranges(progress.channels) if vae_watcher is not None else None,
    )


def _keep_frames(run: Callable[[], list[Tensor]], frames: list[Tensor]) -> None:
    frames += run()


def _vae_watcher(
    config: ModelConfig, vae: Weights | None, request: CalibrationRequest
) -> VaeWatcher | None:
    if vae is None:
        return None
    assert isinstance(config.vae, VaeConfig)
    return VaeWatcher(config.vae, vae, request.compute, request.device)


def load_model(config: ModelConfig, weights: Weights, compute: str, device: str) -> Transformer:
    dtype = TORCH_TYPES[compute]
    with torch.device("meta"):
        model = Transformer(config.transformer)
    model.to(dtype).to_empty(device=device).requires_grad_(False)
    fill(model, weights)
    return model.eval()


def _described(video: Video, prompts: Sequence[str]) -> str:
    shown = " and ".join(f"{number + 1} ({prompts[number][:60]!r})" for number in video.prompts)
    return f"the rollout of prompt {shown}"


def _origin(
    config: ModelConfig,
    weights: Weights,
    request: CalibrationRequest,
    videos: Sequence[Video],
    texts: TextStates,
    vae: Weights | None,
) -> Origin:
    return Origin(
        checkpoint=weights.digest(),
        transformer=value_hash(config.transformer),
        rollout=value_hash(config.rollout),
        prompts=prompts_sha256(request.prompts),
        videos=len(videos),
        blocks=videos[0].blocks,
        seed=request.seed,
        compute=request.compute,
        text_states=texts.kind,
        vae=vae.digest() if vae is not None else "",
    )


def _resume(path: Path, origin: Origin) -> CalibrationProgress:
    if not path.is_file():
        return CalibrationProgress({}, [])
    try:
        header = read_header(path)
        found = parse_json(header.metadata.get("known", ""))
        if found == {"format": _PROGRESS_FORMAT, "origin": asdict(origin)}:
            return _progress(path, header)
    except ReadingError as error:
        logger.warning("%s: not readable (%s); starting over", path, error)
        return CalibrationProgress({}, [])
    logger.warning("%s: of another calibration; starting over", path)
    return CalibrationProgress({}, [])


def _progress(path: Path, header: TensorHeader) -> CalibrationProgress:
    by_video: tuple[dict[str, float], ...] = checked(
        tuple[dict[str, float], ...], parse_json(header.metadata.get("by_video", "")), "by_video"
    )
    if any(video.keys() != header.entries.keys() for video in by_video):
        raise ReadingError("videos and channels do not fit together")
    if any(entry.dtype not in FLOATS for entry in header.entries.values()):
        raise ReadingError("it holds no ranges")
    channels = {name: torch.from_numpy(values) for name, values in header.read_all().items()}
    logger.warning("%s: going on after %d videos", path, len(by_video))
    return CalibrationProgress(channels, list(by_video))


def _save_progress(path: Path, origin: Origin, progress: CalibrationProgress) -> None:
    metadata = {
        "known": json.dumps({"format": _PROGRESS_FORMAT, "origin": asdict(origin)}),
        "by_video": json.dumps(progress.by_video),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with publish_file(path) as partial:
        save_file(progress.channels, partial, metadata)
