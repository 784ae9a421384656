"""``longlive-trt eval``."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from longlive_trt.cli import INTERRUPTED
from longlive_trt.commands._bundle import find_bundle
from longlive_trt.commands._device import decoder_option, device_option
from longlive_trt.commands._numbers import real, whole
from longlive_trt.commands._reporting import command_line
from longlive_trt.commands._voice import Voice, examples, overwrite_option, speaking
from longlive_trt.console.printing import console
from longlive_trt.contract import ENCODER_GRAPHS
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.errors import UsageError
from longlive_trt.extras import missing_module_message
from longlive_trt.loading import DEMO, load
from longlive_trt.quality.cases import COUNT, SECONDS, Lengths
from longlive_trt.quality.evaluation import Evaluation, claimed, measure
from longlive_trt.quality.instruments import Extras
from longlive_trt.quality.ledger import Ledger
from longlive_trt.quality.metrics.adherence import can_judge, is_demo
from longlive_trt.quality.metrics.clip import ClipScore
from longlive_trt.quality.metrics.clips import ClipReader
from longlive_trt.quality.metrics.lpips import Lpips
from longlive_trt.quality.prompts import read_prompts, shipped_file
from longlive_trt.quality.report.files import check_report, write_report
from longlive_trt.quality.report.table import show
from longlive_trt.quality.report.values import report_values
from longlive_trt.quality.rolling import Maker
from longlive_trt.runtime.interrupts import stop_on_signals
from longlive_trt.runtime.pipeline import Pipeline
from longlive_trt.runtime.plan import SEEDS

_PATH = click.Path(path_type=Path)
_LENGTHS = Lengths()
_REFERENCE = "fp32"
_EXAMPLES = examples(
    "longlive-trt eval demo --preset turbo --out report",
    "longlive-trt eval bundle-fp8/ --against bundle/ --prompts 8 --timelines 2 --out report.html",
)


@click.command(epilog=_EXAMPLES)
@click.argument("bundle", type=_PATH)
@click.option("--against", type=_PATH, metavar="BUNDLE", help="The reference: the fp32 build.")
@click.option("--preset", help="How to run BUNDLE; the reference runs as it was exported.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As `generate --set`.")
@click.option("--switch", metavar="MODE", help="As `generate --switch`, for BUNDLE alone.")
@decoder_option
@click.option(
    "--prompt-set",
    type=_PATH,
    metavar="FILE",
    help="JSON as the shipped sets are, or a prompt a line.  [default: 40 prompts, 10 timelines]",
)
@click.option("--prompts", type=whole(COUNT), help="The first so many of the set.  [default: all]")
@click.option("--timelines", type=whole(COUNT), help="As --prompts.  [default: all]")
@click.option(
    "--seconds",
    type=real(SECONDS),
    default=_LENGTHS.seconds,
    show_default=True,
    help="Of a prompt's video; two thirds for each prompt of a timeline.",
)
@click.option("--long", type=whole(COUNT), default=_LENGTHS.long, show_default=True, help="Videos that are looked at for drift.")  # fmt: skip # noqa: E501
@click.option(
    "--long-seconds", type=real(SECONDS), default=_LENGTHS.long_seconds, show_default=True
)
@click.option("--seed", type=whole(SEEDS), default=0, show_default=True)
@click.option("--lpips", type=_PATH, metavar="FILE", help="Weights of an LPIPS network.")
@click.option("--clip", type=_PATH, metavar="DIR", help="Folder of a CLIP model.")
@device_option
@click.option(
    "--out",
    required=True,
    type=_PATH,
    metavar="REPORT",
    help="A folder for report.html, report.md and report.json, or a name that ends with one of "
    "these.",
)
@overwrite_option
@speaking
def command(
    bundle: Path,
    against: Path | None,
    preset: str | None,
    overrides: tuple[str, ...],
    switch: str | None,
    decoder: str | None,
    prompt_set: Path | None,
    prompts: int | None,
    timelines: int | None,
    seconds: float,
    long: int,
    long_seconds: float,
    seed: int,
    lpips: Path | None,
    clip: Path | None,
    device: DeviceChoice,
    out: Path,
    overwrite: bool,
    voice: Voice,
) -> int:
    """Measure how good BUNDLE's videos are, by themselves and against a reference.

    Videos of a set of prompts are made with both, picture by picture from the same noise. What was
    measured is kept video by video: after an interruption, the same command goes on.
    """
    lengths = Lengths(prompts, timelines, seconds, long, long_seconds, seed)
    check_report(out, overwrite=overwrite)
    with ExitStack() as stack:
        pipeline = stack.enter_context(load(find_bundle(bundle, voice), device=device))
        own = Maker(pipeline, preset, overrides, switch, decoder)
        other = _reference(own, against, device, stack, voice)
        asked = read_prompts(prompt_set or shipped_file(pipeline.config))
        weights = {"--lpips": lpips, "--clip": clip}
        evaluation = Evaluation(
            own,
            other,
            asked,
            lengths,
            Extras(
                lpips=Lpips(lpips) if lpips is not None else None,
                clip=ClipScore(clip) if clip is not None else None,
                clips=_clip_reader(own, other, stack, voice),
                judges=_judges(pipeline, voice),
            ),
            {name: path for name, path in weights.items() if path is not None},
        )
        stack.enter_context(claimed(out))
        ledger = Ledger(out, evaluation.key)
        report = stack.enter_context(voice.reporting()).stages
        stop = stack.enter_context(stop_on_signals(voice.note))
        if not measure(evaluation, ledger, report, voice.note, stop):
            voice.note(f"{len(ledger.lines)} videos are measured; the same command goes on there")
            return INTERRUPTED
        lines = [ledger.lines[case.kind, case.number] for case in evaluation.cases]
    values = report_values(evaluation, lines, command_line())
    files = write_report(out, values, lines)
    ledger.discard()
    voice.show(lambda: _show(values, files), values)
    return 0


def _show(values: Mapping[str, Any], files: Sequence[Path]) -> None:
    show(values, console(file_width=100))
    click.echo("\n" + "\n".join(str(path) for path in files))


def _reference(
    own: Maker, against: Path | None, device: DeviceChoice, stack: ExitStack, voice: Voice
) -> Maker | None:
    """None where the bundle would be compared with itself."""
    bundle = own.pipeline.bundle
    if against is not None:
        folder = find_bundle(against, voice)
        is_same = folder.resolve() == bundle.folder.resolve()
        if is_same and not own.is_changed:
            raise UsageError(
                f"--against {against}: BUNDLE itself; give another one, or a --preset to compare"
            )
        pipeline = own.pipeline if is_same else stack.enter_context(load(folder, device=device))
        return Maker(pipeline)
    if bundle.manifest.precision == _REFERENCE:
        return Maker(own.pipeline) if own.is_changed else None
    raise UsageError(
        f"{bundle.folder}: built in {bundle.manifest.precision}, and there is nothing to compare "
        f"it with; give --against BUNDLE, the same export built with --precision {_REFERENCE}"
    )


def _clip_reader(own: Maker, other: Maker | None, stack: ExitStack, voice: Voice) -> ClipReader:
    """With the reference's encoder, or the bundle's; where neither has one, with the demo's."""
    pipelines = [maker.pipeline for maker in (other, own) if maker is not None]
    reading = (p for p in pipelines if all(map(p.bundle.has, ENCODER_GRAPHS)))
    pipeline = next(reading, None)
    if pipeline is None:
        pipeline = stack.enter_context(load(find_bundle(Path(DEMO), voice), device="cpu"))
    return ClipReader(pipeline.engines.encoder, pipeline.config)


def _judges(pipeline: Pipeline, voice: Voice) -> bool:
    if is_demo(pipeline.config) and not can_judge():
        voice.note(f"what the demo's videos show is not judged: {missing_module_message('torch')}")
        return False
    return is_demo(pipeline.config)
