"""``longlive-trt serve``."""

import secrets
import signal
from pathlib import Path

import click

from longlive_trt.cli import INTERRUPTED
from longlive_trt.commands._bundle import HELP as BUNDLE_HELP
from longlive_trt.commands._bundle import find_bundle
from longlive_trt.commands._device import decoder_option, device_option
from longlive_trt.commands._voice import Voice, examples, speaking
from longlive_trt.engines.bundles.bundle import Bundle, read_manifest
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.errors import UsageError
from longlive_trt.extras import SERVING, require_modules
from longlive_trt.files import require_place
from longlive_trt.loading import DEMO
from longlive_trt.runtime.decoding.choice import DecoderName, decoder_named

_PATH = click.Path(path_type=Path)
_EXAMPLES = examples(
    "longlive-trt serve --open", "longlive-trt serve --bundle bundle/ --host 0.0.0.0 --token SECRET"
)


@click.command(epilog=_EXAMPLES)
@click.option("--bundle", type=_PATH, default=DEMO, show_default=True, help=BUNDLE_HELP)
@decoder_option
@device_option
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
@speaking
def command(
    bundle: Path,
    decoder: DecoderName | None,
    device: DeviceChoice,
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
    voice: Voice,
) -> int:
    """Endless video in the browser that answers to typing, and the API under it."""
    require_modules(SERVING)
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
    if data is not None:
        require_place(data / "states")
    for path in (tls_cert, tls_key):
        if path is not None and not path.is_file():
            raise UsageError(f"{path}: no such file")
    folder = find_bundle(bundle, voice)
    manifest = read_manifest(folder)
    if decoder is not None:
        # Refused before anything is listened to.
        decoder_named(Bundle(folder, manifest), decoder)
    logs.set_up(prompts=log_prompts)

    def load() -> BundleModel:
        return load_model(folder, device, decoder)

    def say(address: str) -> None:
        voice.result(f"Open {address} in a browser. Ctrl-C ends it.", {"address": address})

    ended_by = serve(
        settings, load, certificate=tls_cert, key=tls_key, say=say, open_browser=open_browser
    )
    return INTERRUPTED if ended_by == signal.SIGINT else 0
