"""``longlive-trt demo``."""

from pathlib import Path

import av
import click
import numpy as np

from longlive_trt.cli import INTERRUPTED
from longlive_trt.commands._bundle import find_demo
from longlive_trt.commands._voice import Voice, examples, speaking
from longlive_trt.configs import ModelConfig
from longlive_trt.demo.poster import Pixels, save_poster, strips
from longlive_trt.loading import DEMO, load
from longlive_trt.runtime.generation import Outputs, generate
from longlive_trt.runtime.output import free_name
from longlive_trt.runtime.plan import VideoOptions, plan_video
from longlive_trt.runtime.progress import Mode, make_progress

SEED = 1
FRAMES = 51
PROMPTS = {
    0: "A red car drives to the right through the desert at sunset",
    18: "A red car drives to the right through the forest at night, in the snow",
    33: "A red train goes to the right over the meadow in the morning",
}
"""By the latent frame from which each is wanted."""
TITLE = "An endless journey, steered by words"


@click.command(epilog=examples("longlive-trt demo", "longlive-trt demo --out my-demo/"))
@click.option(
    "--out",
    default=Path("out/demo"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for it all.",
)
@speaking
def command(out: Path, voice: Voice) -> int:
    """Make a 12-second video whose prompt changes twice, and a contact sheet, on this machine.

    The demo model comes with the package. Its bundle is built at the first call, and kept.
    """
    video, sheet = free_name(out / "video.mp4"), free_name(out / "sheet.png")
    mode: Mode = "quiet" if voice.is_quiet else "auto"
    options = VideoOptions(prompt=PROMPTS, frames=FRAMES, seed=SEED)
    with load(find_demo(voice)) as pipeline, make_progress(mode) as progress:
        config, plan = pipeline.config, plan_video(pipeline.bundle, options)
        outputs = Outputs(str(video))
        if generate(pipeline, plan, outputs, progress, f"longlive-trt demo --out {out}"):
            return INTERRUPTED
    save_poster(sheet, TITLE, _note(config), strips(_pictures(video), config.fps, _starts(config)))
    voice.result(_describe(video, sheet, config), {"video": video, "sheet": sheet})
    return 0


def _describe(video: Path, sheet: Path, config: ModelConfig) -> str:
    return (
        f"\nThe video:         {video}\nThe contact sheet: {sheet}\n\n"
        f"Make one of your own:\n"
        f'  longlive-trt generate --bundle {DEMO} --prompt "{config.prompts.suggestions[-1]}" '
        f"--seconds 10 --out mine.mp4\n"
        f"Or steer it while it runs, in the browser:\n"
        f"  longlive-trt serve --open"
    )


def _note(config: ModelConfig) -> str:
    assert config.video_size is not None
    height, width = config.video_size
    return f"{width} by {height} pixels, {config.fps:g} frames/s, made on a CPU"


def _starts(config: ModelConfig) -> dict[int, str]:
    """Prompts by the picture with which they begin."""
    return {config.video_frames(frame): prompt for frame, prompt in PROMPTS.items()}


def _pictures(video: Path) -> Pixels:
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).astype(np.uint8, copy=False)
