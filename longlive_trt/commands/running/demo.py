"""``longlive-trt demo``."""

from pathlib import Path

import click

from longlive_trt.commands._reporting import stage_reporter
from longlive_trt.configs import load_config
from longlive_trt.engines.build import build
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.export.components import Sources
from longlive_trt.export.exporter import export
from longlive_trt.precision import precision_named
from longlive_trt.runtime.generation import Outputs, Request, check_request, generate
from longlive_trt.runtime.progress import make_progress
from longlive_trt.runtime.prompting.timeline import Cue

MODEL = "tiny"
SEED = 0
BLOCKS = 6
PROMPTS = (
    Cue(0, "A lighthouse on a cliff under a clear sky"),
    Cue(9, "The same lighthouse in a storm at night"),
)


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for it all.")
def command(out: Path) -> None:
    """Export, build and generate in one go, on this machine.

    The model is tiny and its weights are random: the video is colorful noise, and every step
    that made it is the one that a real checkpoint takes.
    """
    config = load_config(MODEL)
    graphs, bundle_folder, video = out / "onnx", out / "bundle", out / "video.mp4"
    with stage_reporter() as report:
        click.echo(f"1/3 export: model {MODEL}, random weights from seed {SEED}")
        sources = Sources(random_seed=SEED)
        export(config, sources, graphs, precision_named("fp32"), report=report)
        click.echo("2/3 build: ONNX Runtime engines, fp32")
        build(graphs, bundle_folder, "fp32", command="longlive-trt demo", report=report)
    click.echo("3/3 generate: two prompts, one video")
    bundle = open_bundle(bundle_folder)
    outputs = Outputs(video=str(video), overwrite=True)
    request = Request(config, outputs, BLOCKS, starts=PROMPTS, seed=SEED, command="demo")
    check_request(bundle, request)
    with make_progress("auto") as progress:
        generate(bundle, request, progress)
    click.echo(f"\nThe video is {video} (noise: this model's weights are random).")
    click.echo("The same bundle makes others:")
    click.echo(
        f'  longlive-trt generate --bundle {bundle_folder} --prompt "..." --seconds 10 '
        f"--out {out / 'mine.mp4'}"
    )
