"""The live server on many machines: ``serve --cluster ray``, and what Ray Serve's own tools start.

A configuration of Ray Serve names ``longlive_trt.fleet:app``; ``deploy/serve.yaml`` is one.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from longlive_trt import loading
from longlive_trt.engines.bundles.bundle import read_manifest
from longlive_trt.engines.bundles.choice import Preference, choose
from longlive_trt.engines.bundles.transfer import pull
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.files import cache_folder, locked
from longlive_trt.serving.cluster.placement import Scaling
from longlive_trt.serving.cluster.settings import FleetSettings
from longlive_trt.serving.engine import BundleModel, load_model
from longlive_trt.serving.settings import Pacing, Settings

_TOKEN = "LONGLIVE_TOKEN"  # noqa: S105


class BundleLoader:
    """Loads the bundle where it is called: on a host."""

    def __init__(
        self,
        bundle: str,
        device: DeviceChoice = "auto",
        decoder: str | None = None,
        decode_device: str | None = None,
    ) -> None:
        self._bundle, self._device = bundle, device
        self._decoder, self._decode_device = decoder, decode_device

    def __call__(self) -> BundleModel:
        folder = bundle_here(self._bundle)
        return load_model(folder, self._device, self._decoder, self._decode_device)


def bundle_here(bundle: str) -> Path:
    """A folder, or the demo; from an address the best for this machine, fetched once."""
    if "://" not in bundle:
        return loading.find_bundle(Path(bundle))
    from longlive_trt.commands.shipping.pull import this_machine

    name = hashlib.sha256(bundle.encode()).hexdigest()[:24]
    folder = cache_folder("bundles") / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Hosts of one machine wait for the first, and find what it fetched.
    with locked(folder.with_name(f".{name}.lock")):
        pull(
            bundle,
            folder,
            lambda entries: choose(entries, this_machine(), Preference(None, ()), bundle).best,
        )
    return folder


class Arguments(BaseModel):
    """What a configuration of Ray Serve may say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str = Field(min_length=1)
    bundle: str = loading.DEMO
    device: DeviceChoice = "auto"
    hosts: int = Field(default=1, ge=1, le=10_000)
    most_hosts: int | None = Field(default=None, ge=1, le=10_000)
    gateways: int = Field(default=1, ge=1, le=1000)
    sessions: int | None = Field(default=None, ge=1, le=1000)
    save_every_s: float = Field(default=30, ge=1, le=86_400)
    keep_days: float = Field(default=7, ge=2, le=3650)
    gpus_per_host: float = Field(default=0, ge=0, le=8)
    cpus_per_host: float = Field(default=1, ge=0, le=1024)
    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    root_path: str = ""
    lead: int = Field(default=2, ge=1, le=4)
    speculate: bool = True
    log_prompts: bool = False


def app(arguments: Arguments) -> Any:
    """The application, for ``serve run longlive_trt.fleet:app store=...`` and configurations.

    The token comes from the environment (``LONGLIVE_TOKEN``): configurations are shown to people.
    """
    from longlive_trt.serving.cluster.on_ray.deployments import make_application

    token = os.environ.get(_TOKEN)
    return make_application(
        settings_of(arguments, token),
        fleet_of(arguments),
        BundleLoader(arguments.bundle, arguments.device),
    )


def settings_of(arguments: Arguments, token: str | None, port: int = 8400) -> Settings:
    return Settings(
        pacing=Pacing(lead_blocks=arguments.lead, speculate=arguments.speculate),
        sessions=arguments.sessions,
        token=token,
        host=arguments.host,
        port=port,
        allowed_hosts=arguments.allowed_hosts,
        root_path=arguments.root_path,
        log_prompts=arguments.log_prompts,
    )


def fleet_of(arguments: Arguments) -> FleetSettings:
    most = arguments.most_hosts or arguments.hosts
    return FleetSettings(
        store=arguments.store,
        save_every_s=arguments.save_every_s,
        keep_days=arguments.keep_days,
        scaling=Scaling(arguments.hosts, max(most, arguments.hosts)),
        gateways=arguments.gateways,
        bundle_key=_key(arguments.bundle),
        gpus_per_host=arguments.gpus_per_host,
        cpus_per_host=arguments.cpus_per_host,
    )


def _key(bundle: str) -> str | None:
    """Of a bundle that is here; from an address each machine may get another."""
    if "://" in bundle or bundle == loading.DEMO:
        return None
    return read_manifest(loading.find_bundle(Path(bundle))).key
