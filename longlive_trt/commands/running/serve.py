"""``longlive-trt serve``."""

import secrets
import signal
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from longlive_trt.cli import INTERRUPTED
from longlive_trt.commands._bundle import HELP as BUNDLE_HELP
from longlive_trt.commands._bundle import find_bundle
from longlive_trt.commands._cluster import ClusterChoice, cluster_options
from longlive_trt.commands._device import decode_device_option, decoder_option, device_option
from longlive_trt.commands._voice import Voice, examples, speaking
from longlive_trt.contract import STEP
from longlive_trt.engines.bundles.bundle import Bundle, read_manifest
from longlive_trt.engines.loader import DeviceChoice, decode_ordinal, require_runnable
from longlive_trt.errors import UsageError
from longlive_trt.extras import CLUSTER, SERVING, require_modules
from longlive_trt.files import require_place
from longlive_trt.loading import DEMO
from longlive_trt.runtime.decoding.choice import DecoderName, decoder_named

if TYPE_CHECKING:
    from longlive_trt.serving.settings import Settings

_PATH = click.Path(path_type=Path)
_EXAMPLES = examples(
    "longlive-trt serve --open",
    "longlive-trt serve --bundle bundle/ --host 0.0.0.0 --token SECRET",
    "longlive-trt serve --cluster ray --hosts 4 --sessions 2 --store states/",
)


@click.command(epilog=_EXAMPLES)
@click.option("--bundle", type=_PATH, default=DEMO, show_default=True, help=BUNDLE_HELP)
@decoder_option
@device_option
@decode_device_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8400, show_default=True)
@click.option(
    "--sessions",
    type=click.IntRange(1, 1000),
    help="Sessions at a time.  [default: as many as memory and speed allow]",
)
@click.option("--token", help="What callers must show; any address but loopback demands one.")
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Another name this server is reached by, such as a proxy's; may be repeated.",
)
@click.option("--root-path", default="", metavar="/PREFIX", help="Where a proxy publishes it.")
@click.option("--tls-cert", type=_PATH, help="A certificate (PEM): serve HTTPS.")
@click.option("--tls-key", type=_PATH, help="Its key, where the certificate file has none.")
@click.option("--data", type=_PATH, help="Keep saved states here.  [default: for this run only]")
@click.option(
    "--lead", type=click.IntRange(1, 4), default=2, show_default=True, help="Blocks ahead."
)
@click.option("--no-speculation", is_flag=True, help="Make nothing before Enter is pressed.")
@click.option("--log-prompts", is_flag=True, help="Write what people type into the logs.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@cluster_options
@speaking
def command(
    bundle: Path,
    decoder: DecoderName | None,
    device: DeviceChoice,
    decode_device: str | None,
    host: str,
    port: int,
    sessions: int | None,
    token: str | None,
    allowed_hosts: tuple[str, ...],
    root_path: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    data: Path | None,
    lead: int,
    no_speculation: bool,
    log_prompts: bool,
    open_browser: bool,
    cluster: ClusterChoice,
    voice: Voice,
) -> int:
    """Endless video in the browser that answers to typing, and the API under it.

    With --cluster ray from many hosts: sessions go where there is room, and survive their host.
    """
    require_modules(SERVING if cluster.kind is None else CLUSTER)
    from longlive_trt.serving.engine import BundleModel, load_model
    from longlive_trt.serving.operation import logs
    from longlive_trt.serving.server import serve
    from longlive_trt.serving.settings import Pacing, Settings

    settings = Settings(
        pacing=Pacing(lead_blocks=lead, speculate=not no_speculation),
        sessions=sessions,
        token=token,
        host=host,
        port=port,
        allowed_hosts=allowed_hosts,
        root_path=root_path.rstrip("/"),
        data=data,
        log_prompts=log_prompts,
    )
    if not settings.is_loopback and token is None:
        raise UsageError(
            f"--host {host}: others could reach this server; give --token, such as --token "
            f"{secrets.token_urlsafe(18)}"
        )
    if data is not None and cluster.kind is not None:
        raise UsageError("--data is one server's; a fleet keeps its states in --store")
    if data is not None:
        require_place(data / "states")
    for path in (tls_cert, tls_key):
        if path is not None and not path.is_file():
            raise UsageError(f"{path}: no such file")
    if cluster.kind is not None:
        certificates = (tls_cert, tls_key)
        decoding = (decoder, decode_device)
        return _serve_fleet(
            bundle, device, decoding, settings, cluster, certificates, open_browser, voice
        )
    folder = find_bundle(bundle, voice)
    held = _require_live(folder, decoder)
    require_runnable(held, device)
    decode_ordinal(held, device, decode_device)
    logs.set_up(prompts=log_prompts)

    def load() -> BundleModel:
        return load_model(folder, device, decoder, decode_device)

    def say(address: str) -> None:
        voice.result(f"Open {address} in a browser. Ctrl-C ends it.", {"address": address})

    ended_by = serve(
        settings, load, certificate=tls_cert, key=tls_key, say=say, open_browser=open_browser
    )
    return INTERRUPTED if ended_by == signal.SIGINT else 0


def _require_live(folder: Path, decoder: DecoderName | None) -> Bundle:
    """Refused before anything is listened to."""
    held = Bundle(folder, read_manifest(folder))
    held.require(STEP, "making a live video")
    decoder_named(held, decoder)
    return held


def _serve_fleet(
    bundle: Path,
    device: DeviceChoice,
    decoding: tuple[DecoderName | None, str | None],
    settings: "Settings",
    cluster: ClusterChoice,
    certificates: tuple[Path | None, Path | None],
    open_browser: bool,
    voice: Voice,
) -> int:
    from longlive_trt.fleet import BundleLoader
    from longlive_trt.serving.cluster.on_ray.running import serve_fleet
    from longlive_trt.serving.cluster.placement import Scaling
    from longlive_trt.serving.cluster.settings import FleetSettings
    from longlive_trt.serving.cluster.store.registry import Registry

    assert cluster.store is not None
    where, key = str(bundle), None
    if "://" not in where:
        folder = find_bundle(bundle, voice).resolve()
        where, key = str(folder), read_manifest(folder).key
        _require_live(folder, decoding[0])
    store = cluster.store if "://" in cluster.store else str(Path(cluster.store).resolve())
    Registry(store).require_exclusive()
    gpus = cluster.gpus_per_host
    hosts = cluster.hosts or 1
    fleet = FleetSettings(
        store=store,
        save_every_s=cluster.save_every_s or FleetSettings.save_every_s,
        keep_days=cluster.keep_days or FleetSettings.keep_days,
        scaling=Scaling(hosts, cluster.most_hosts or hosts),
        gateways=cluster.gateways or 1,
        bundle_key=key,
        gpus_per_host=(1 if device == "cuda" else 0) if gpus is None else gpus,
    )

    def say(address: str) -> None:
        voice.result(f"Open {address} in a browser. Ctrl-C ends it.", {"address": address})
        if open_browser:
            webbrowser.open(address)

    ended_by = serve_fleet(
        settings,
        fleet,
        BundleLoader(where, device, *decoding),
        certificate=certificates[0],
        key=certificates[1],
        say=say,
    )
    return INTERRUPTED if ended_by == signal.SIGINT else 0
