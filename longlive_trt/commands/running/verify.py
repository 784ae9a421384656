"""``longlive-trt verify``."""

import math
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from longlive_trt.commands._bundle import find_bundle
from longlive_trt.commands._device import device_option
from longlive_trt.commands._numbers import real, whole
from longlive_trt.commands._voice import PATIENCE_S, Voice, examples, speaking
from longlive_trt.configs.replay import load_replay
from longlive_trt.console.printing import console
from longlive_trt.console.wording import byte_size, counted
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.bundles.contents import require_complete
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.errors import UsageError
from longlive_trt.runtime.verify import (
    BLOCKS,
    DEFAULT_BLOCKS,
    TOLERANCE,
    Comparison,
    compare,
    default_tolerance,
    open_reference,
)

_PATH = click.Path(path_type=Path)
_EXAMPLES = examples(
    "longlive-trt verify bundle/", "longlive-trt verify bundle-fp8/ --against bundle/ --blocks 4"
)


@click.command(epilog=_EXAMPLES)
@click.argument("bundle", type=_PATH)
@click.option(
    "--against", type=_PATH, metavar="BUNDLE|ONNX", help="What to compare the results with."
)
@click.option("--replay", type=_PATH, help="With --against: the rollout to replay.")
@click.option(
    "--blocks",
    type=whole(BLOCKS),
    help=f"With --against: the length without --replay.  [default: {DEFAULT_BLOCKS}]",
)
@click.option(
    "--tolerance",
    type=real(TOLERANCE),
    help="With --against: the relative L2 error that passes.  [default: by precision]",
)
@device_option
@speaking
def command(
    bundle: Path,
    against: Path | None,
    replay: Path | None,
    blocks: int | None,
    tolerance: float | None,
    device: DeviceChoice,
    voice: Voice,
) -> int:
    """Check every file of a BUNDLE, or what it computes against another one.

    With --against, the same rollout runs on both. Exit code 1 says that it failed.
    """
    if against is None and (replay or blocks or tolerance):
        raise UsageError("--replay, --blocks and --tolerance compare two things: add --against")
    if replay and blocks:
        raise UsageError("--replay fixes the length: leave out --blocks")
    folder = find_bundle(bundle, voice)
    with voice.reporting(patience_s=PATIENCE_S) as report:
        candidate = open_bundle(folder, report.bytes)
    if against is None:
        require_complete(candidate)
        _show_files(candidate, voice)
        return 0
    reference = open_reference(against)
    limit = tolerance or default_tolerance(
        reference.manifest.precision, candidate.manifest.precision
    )
    rollout = load_replay(replay, reference.config) if replay else None
    result = compare(reference, candidate, limit, rollout, blocks or DEFAULT_BLOCKS, device)
    voice.show(lambda: _show(reference, candidate, result), _values(reference, candidate, result))
    return 0 if result.passed else 1


def _show_files(bundle: Bundle, voice: Voice) -> None:
    manifest, files = bundle.manifest, len(bundle.manifest.files)
    size = manifest.total_bytes
    voice.result(
        f"{bundle.folder}: {counted(files, 'file')}, {byte_size(size)}, all as the manifest says",
        {
            "bundle": str(bundle.folder),
            "passed": True,
            "files": files,
            "bytes": size,
            "key": manifest.key,
        },
    )


def _values(reference: Bundle, candidate: Bundle, result: Comparison) -> dict[str, Any]:
    return {
        "bundle": _side(candidate),
        "against": _side(reference),
        "tolerance": result.tolerance,
        "passed": result.passed,
        "graphs": {
            name: {"error": _finite(graph.error), "output": graph.output, "runs": graph.runs}
            for name, graph in result.graphs.items()
        },
        "blocks": [
            {
                "latents": _finite(block.latents),
                "psnr_db": _finite(block.psnr_db),
                "frames_identical": block.psnr_db == math.inf,
            }
            for block in result.blocks
        ],
    }


def _side(bundle: Bundle) -> dict[str, str]:
    engine, precision = bundle.manifest.engine, bundle.manifest.precision
    kind = f"{engine.kind} {engine.version} for {engine.target}"
    return {"path": str(bundle.folder), "engine": kind, "precision": precision}


def _finite(value: float | None) -> float | None:
    """JSON has neither infinity nor NaN."""
    return value if value is not None and math.isfinite(value) else None


def _show(reference: Bundle, candidate: Bundle, result: Comparison) -> None:
    shown = console()
    for name, bundle in (("checked", candidate), ("against", reference)):
        side = _side(bundle)
        click.echo(f"{name}: {side['path']} ({side['precision']}, {side['engine']})")
    graphs = Table(title="Each graph on identical inputs")
    for column in ("graph", "relative L2 error", "worst output", "runs"):
        graphs.add_column(column)
    for name, graph in result.graphs.items():
        graphs.add_row(name, f"{graph.error:.2e}", graph.output, str(graph.runs))
    blocks = Table(title="The rollout, block by block")
    for column in ("block", "latents, relative L2", "frames, PSNR"):
        blocks.add_column(column)
    for number, block in enumerate(result.blocks):
        blocks.add_row(str(number), f"{block.latents:.2e}", _decibels(block.psnr_db))
    shown.print(graphs)
    if result.blocks:
        shown.print(blocks)
    verdict = "passed" if result.passed else "FAILED"
    click.echo(f"{verdict}: every error should be at most {result.tolerance:g}")


def _decibels(value: float | None) -> str:
    if value is None:
        return "not decoded"
    return "identical" if value == math.inf else f"{value:.1f} dB"
