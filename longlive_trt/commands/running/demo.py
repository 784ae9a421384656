"""``longlive-trt demo``."""

from pathlib import Path

import click

from longlive_trt.commands._reporting import stage_reporter
from longlive_trt.making.building import build
from longlive_trt.making.exporting import export
from longlive_trt.runtime.generation import Outputs, generate
from longlive_trt.runtime.output import free_video
from longlive_trt.runtime.pipeline import load
from longlive_trt.runtime.plan import VideoOptions, plan_video
from longlive_trt.runtime.progress import make_progress

MODEL = "tiny"
SEED = 0
FRAMES = 18
PROMPTS = {
    0: "A lighthouse on a cliff under a clear sky",
    9: "The same lighthouse in a storm at night",
}


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for it all.")
def command(out: Path) -> None:
    """Export, build and generate in one go, on this machine.

    The model is tiny and its weights are random: the video is colorful noise, and every step
    that made it is the one that a real checkpoint takes.
    """
    graphs, bundle = out / "onnx", out / "bundle"
    video = free_video(out / "video.mp4")
    with stage_reporter() as progress:
        click.echo(f"1/3 export: model {MODEL}, random weights from seed {SEED}")
        export(MODEL, graphs, random_weights=SEED, progress=progress)
        click.echo("2/3 build: ONNX Runtime engines, fp32")
        build(graphs, bundle, command="longlive-trt demo", progress=progress)
    click.echo("3/3 generate: two prompts, one video")
    options = VideoOptions(prompt=PROMPTS, frames=FRAMES, seed=SEED)
    with load(bundle) as pipeline, make_progress("auto") as shown:
        plan = plan_video(pipeline.bundle, options)
        generate(pipeline, plan, Outputs(str(video)), shown, "demo")
    click.echo(f"\nThe video is {video} (noise: this model's weights are random).")
    click.echo("The same bundle makes others:")
    click.echo(
        f'  longlive-trt generate --bundle {bundle} --prompt "..." --seconds 10 '
        f"--out {out / 'mine.mp4'}"
    )
