"""``longlive-trt build``."""

import json
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any, get_args

import click
from rich.table import Table

from longlive_trt.commands._numbers import real, whole
from longlive_trt.commands._reporting import command_line
from longlive_trt.commands._voice import PATIENCE_S, Voice, examples, speaking
from longlive_trt.console.printing import console
from longlive_trt.console.wording import byte_size, counted
from longlive_trt.contract import TEXT
from longlive_trt.engines.build import BuildResult
from longlive_trt.engines.bundles.bundle import BATCH
from longlive_trt.engines.registry import DEFAULT, KINDS
from longlive_trt.engines.trt.report import REPORT_NAME
from longlive_trt.making.building import (
    MEMORY_GIB,
    OPTIMIZATION,
    Attention,
    Compatibility,
    build,
)
from longlive_trt.making.quantized import QUANTIZED
from longlive_trt.precision import PRECISIONS

_PATH = click.Path(path_type=Path)
_EXAMPLES = examples(
    "longlive-trt build --onnx onnx/ --out bundle/",
    "longlive-trt build --onnx onnx/ --gpu sm90 --precision bf16 --out bundle/",
)
_COLUMNS = (
    *("graph", "pro-\nfiles", "ker-\nnels", "fused\nattn", "matrix\nproducts", "soft-\nmax"),
    *("scratch\nMB", "weights\nMB", "time\ns", "host\npeak MB"),
)


@click.command(epilog=_EXAMPLES)
@click.option("--onnx", required=True, type=_PATH, help="Folder that `export` made.")
@click.option(
    "--precision",
    type=click.Choice([*PRECISIONS, *QUANTIZED]),
    help="fp8 and int8 calibrate first, unless --onnx is quantized already.  [default: fp32, or "
    "the preset's]",
)
@click.option("--preset", help="Build what this preset needs (`longlive-trt presets`).")
@click.option(
    "--compute",
    type=click.Choice(list(PRECISIONS)),
    help="fp8, int8: type of what is not quantized.  [default: fp32 on a CPU, else bf16]",
)
@click.option("--calibration", type=_PATH, help="fp8, int8: use the scales of this file.")
@click.option("--engine", type=click.Choice(list(KINDS)), default=DEFAULT.name, show_default=True)
@click.option("--out", required=True, type=_PATH, help="The bundle.")
@click.option("--force", is_flag=True, help="Build even if nothing has changed.")
@click.option(
    "--share-with",
    type=_PATH,
    metavar="BUNDLE",
    help="Use its engines again where they would be the same; those beside --out are anyway.",
)
@click.option("--gpu", metavar="smNN", help="Architecture: of tensorrt-rtx, or onnxruntime's GPU.")
@click.option(
    "--batch",
    type=whole(BATCH),
    default=1,
    show_default=True,
    help="Videos made side by side.",
)
@click.option(
    "--attention",
    type=click.Choice(get_args(Attention)),
    help="The compiler's attention, or our kernel (default where it runs: tensorrt on sm90).",
)
@click.option(
    "--allow-decomposed-attention",
    is_flag=True,
    help="Accept attention that is not one kernel: slow, and large in memory.",
)
@click.option("--optimization-level", type=whole(OPTIMIZATION), help="How long to search.")
@click.option(
    "--workspace-gib", type=real(MEMORY_GIB), help="Most scratch memory a kernel may use."
)
@click.option(
    "--weights-gib", type=real(MEMORY_GIB), help="Stream weights, keeping this much on the GPU."
)
@click.option(
    "--hardware-compatibility",
    type=click.Choice(get_args(Compatibility)),
    help="Run on other GPU models too; costs speed.",
)
@click.option("--version-compatible", is_flag=True, help="Run on later versions of TensorRT too.")
@click.option("--refittable", is_flag=True, help="Let any weights be exchanged later.")
@click.option("--strip", is_flag=True, help="Leave the weights out; `refit` puts them back.")
@click.option("--lora-ready", is_flag=True, help="Let `generate --lora` exchange adapters.")
@click.option("--timing-cache", type=_PATH, help="Folder for measured kernel times.")
@speaking
def command(
    onnx: Path,
    precision: str | None,
    preset: str | None,
    compute: str | None,
    calibration: Path | None,
    engine: str,
    out: Path,
    force: bool,
    share_with: Path | None,
    gpu: str | None,
    batch: int,
    attention: Attention | None,
    allow_decomposed_attention: bool,
    optimization_level: int | None,
    workspace_gib: float | None,
    weights_gib: float | None,
    hardware_compatibility: Compatibility | None,
    version_compatible: bool,
    refittable: bool,
    strip: bool,
    lora_ready: bool,
    timing_cache: Path | None,
    voice: Voice,
) -> None:
    """Compile ONNX graphs into a bundle of engines."""
    with voice.reporting(patience_s=PATIENCE_S) as checks, voice.reporting() as report:
        result = build(
            onnx,
            out,
            precision=precision,
            preset=preset,
            compute=compute,
            calibration=calibration,
            engine=engine,
            force=force,
            share_with=share_with,
            gpu=gpu,
            batch=batch,
            attention=attention,
            allow_decomposed_attention=allow_decomposed_attention,
            optimization_level=optimization_level,
            workspace_gib=workspace_gib,
            weights_gib=weights_gib,
            hardware_compatibility=hardware_compatibility,
            version_compatible=version_compatible,
            refittable=refittable,
            strip=strip,
            lora_ready=lora_ready,
            timing_cache=timing_cache,
            command=command_line(),
            progress=report.stages,
            checking=checks.bytes,
        )
    show_result(result, out, voice)


def show_result(result: BuildResult, out: Path, voice: Voice) -> None:
    manifest = result.manifest
    values = {
        "bundle": out,
        "was_current": result.was_current,
        "key": manifest.key,
        "precision": manifest.precision,
        "engine": asdict(manifest.engine),
        "graphs": list(manifest.graphs),
        "bytes": manifest.total_bytes,
        "shared_bytes": result.shared_bytes,
        "duration_s": manifest.duration_s,
    }
    voice.show(lambda: _show(result, out), values)


def _show(result: BuildResult, out: Path) -> None:
    manifest = result.manifest
    if result.was_current:
        click.echo(f"{out}: nothing has changed since it was built; left as it is")
        return
    if REPORT_NAME in manifest.files:
        _show_report(json.loads((out / REPORT_NAME).read_text(encoding="utf-8")))
    shared = f" ({byte_size(result.shared_bytes)} shared)" if result.shared_bytes else ""
    click.echo(
        f"built {out}: {counted(len(manifest.graphs), 'graph')}, {manifest.precision}, "
        f"{manifest.engine.kind} {manifest.engine.version}, "
        f"{byte_size(manifest.total_bytes)}{shared}, {manifest.duration_s:.1f} s"
    )
    if TEXT in manifest.graphs:
        click.echo(
            f'next: longlive-trt generate --bundle {quote(str(out))} --prompt "..." --out v.mp4'
        )


def _show_report(report: dict[str, Any]) -> None:
    title = f"Engines for {report['engine']['target']} ({report['precision']})"
    table = Table(title=title, box=None, pad_edge=False)
    for number, column in enumerate(_COLUMNS):
        table.add_column(column, justify="right" if number else "left")
    for graph in report["graphs"]:
        table.add_row(*_row(graph))
    console().print(table)


def _row(graph: dict[str, Any]) -> tuple[str, ...]:
    attention = graph["attention"]
    return (
        graph["graph"],
        str(len(graph["profiles"])),
        str(len(graph["layers"])),
        f"{attention['fused']}/{attention['expected']}" if attention["expected"] else "-",
        "\n".join(f"{n} {kind}" for kind, n in graph["matrix_products"].items()) or "-",
        str(graph["categories"].get("softmax", 0)),
        _megabytes(max(graph["activation_bytes"], default=0)),
        _megabytes(graph["weights_bytes"]),
        f"{graph['duration_s']:.1f}",
        _megabytes(graph["peak_host_bytes"]),
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}"
