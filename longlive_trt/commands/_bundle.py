"""How commands take a bundle that may be called by its name."""

from pathlib import Path

from longlive_trt import loading
from longlive_trt.commands._voice import Voice
from longlive_trt.making.demo import demo_bundle

HELP = f"What `build` made, or {loading.DEMO}."


def find_bundle(bundle: Path, voice: Voice) -> Path:
    """The bundle's folder; the demo's is built first, if need be, and that is said."""
    if not loading.is_demo(bundle):
        return loading.find_bundle(bundle)
    return find_demo(voice)


def find_demo(voice: Voice) -> Path:
    with voice.reporting() as report:
        return demo_bundle(voice.note, report.stages)
