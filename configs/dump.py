"""Configurations as plain values, as files and manifests hold them, and their fingerprint."""

import dataclasses
import hashlib
import json
from typing import Any

from longlive_trt.configs.schema import WAN, ModelConfig, PromptsConfig


def config_values(config: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    if config.prompts == PromptsConfig():
        # Records and fingerprints of models that say nothing of prompts are as they always were.
        del values["prompts"]
    if config.rollout.first_steps is None:
        # As above: of models that treat a first block like any other.
        del values["rollout"]["first_steps"]
    if config.light_vae is None:
        # As above: of models with one decoder.
        del values["light_vae"]
    for section in (values["vae"], values.get("light_vae")):
        if section is not None and section["kind"] == WAN:
            # As above: Wan's was the only kind, and had no tiles.
            del section["kind"]
            if not section["tiles"]:
                del section["tiles"]
    return values


def config_sha256(config: ModelConfig) -> str:
    return hashlib.sha256(json.dumps(config_values(config), sort_keys=True).encode()).hexdigest()
