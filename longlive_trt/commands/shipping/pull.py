"""``longlive-trt pull``."""

from pathlib import Path

import click
import psutil

from longlive_trt.commands._voice import Voice, examples, speaking
from longlive_trt.console.wording import byte_size
from longlive_trt.doctor import ask_driver, memory_limit
from longlive_trt.engines.bundles.catalog import CatalogEntry
from longlive_trt.engines.bundles.choice import Choice, Machine, MachineGpu, Preference, choose
from longlive_trt.engines.bundles.transfer import Choose, Pulled, pull
from longlive_trt.engines.registry import KINDS
from longlive_trt.errors import UsageError
from longlive_trt.probes import installed_version

_EXAMPLES = examples(
    "longlive-trt pull s3://bucket/longlive --auto --out bundle/",
    "longlive-trt pull https://example.com/bundle.tar.zst --out bundle/",
)


@click.command(epilog=_EXAMPLES)
@click.argument("url")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The bundle.")
@click.option("--auto", is_flag=True, help="Take what suits this machine best, and say why.")
@click.option("--config", help="With --auto: only bundles of this configuration.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    help="With --auto: only this one; several are tried in the order given.",
)
@speaking
def command(
    url: str, out: Path, auto: bool, config: str | None, precisions: tuple[str, ...], voice: Voice
) -> None:
    """Fetch a bundle, an archive, or the best of a catalog from URL.

    A pull that was interrupted goes on from what it has when it is run again.
    """
    if not auto and (config or precisions):
        raise UsageError("--config and --precision choose from a catalog: add --auto")
    choice = _chooser(url, Preference(config, precisions), voice) if auto else None
    with voice.reporting() as report:
        pulled = pull(url, out, choice, report.bytes)
    voice.result(
        _describe(pulled, out),
        {
            "bundle": out,
            "was_current": pulled.was_current,
            "fetched_bytes": pulled.fetched_bytes,
            "kept_bytes": pulled.kept_bytes,
            "shared_bytes": pulled.shared_bytes,
            "key": pulled.manifest.key,
        },
    )


def _describe(pulled: Pulled, out: Path) -> str:
    if pulled.was_current:
        return f"{out}: this very bundle already; left as it is"
    kept = f" ({byte_size(pulled.kept_bytes)} were here)" if pulled.kept_bytes else ""
    shared = f", {byte_size(pulled.shared_bytes)} shared" if pulled.shared_bytes else ""
    return f"pulled {out}: {byte_size(pulled.fetched_bytes)} fetched{kept}{shared}, all checked"


def _chooser(url: str, preference: Preference, voice: Voice) -> Choose:
    def choose_here(entries: list[CatalogEntry]) -> CatalogEntry:
        machine = this_machine()
        choice = choose(entries, machine, preference, url)
        if not (voice.is_quiet or voice.as_json):
            _explain(choice, machine)
        return choice.best

    return choose_here


def this_machine() -> Machine:
    gpus = [MachineGpu(gpu.name, gpu.capability, gpu.memory_bytes) for gpu in ask_driver().gpus]
    return Machine(
        gpu=gpus[0] if gpus else None,
        memory_bytes=memory_limit(psutil.virtual_memory().total),
        versions={
            kind.name: next(filter(None, map(installed_version, kind.distributions)), None)
            for kind in KINDS.values()
        },
    )


def _explain(choice: Choice, machine: Machine) -> None:
    click.echo(f"this machine: {machine}")
    for verdict in choice.verdicts:
        if verdict.obstacle is not None:
            click.echo(f"  no:  {verdict.entry.path}: {verdict.obstacle}")
        else:
            mark = "take" if verdict.entry is choice.best else "next"
            click.echo(f"  {mark}: {verdict.entry.path}: {verdict.reason}")
