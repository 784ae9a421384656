"""One evaluation from its settings to its figures: made video by video, and gone on with later."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longlive_trt.basics import Report
from longlive_trt.configs import load_preset
from longlive_trt.configs.dump import config_values
from longlive_trt.errors import UsageError
from longlive_trt.files import Claim, real_path, sha256_file
from longlive_trt.quality.cases import Case, Lengths, cases
from longlive_trt.quality.instruments import Extras
from longlive_trt.quality.ledger import Ledger
from longlive_trt.quality.prompts import PromptSet
from longlive_trt.quality.rolling import Maker, require_comparable, roll
from longlive_trt.runtime.interrupts import StopRequest
from longlive_trt.runtime.presets import runtime_config

FORMAT = 2

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Evaluation:
    own: Maker
    other: Maker | None
    asked: PromptSet
    lengths: Lengths
    extras: Extras = field(default_factory=Extras)
    weights: dict[str, Path] = field(default_factory=dict)
    """Files of weights that judge, by their options."""

    def __post_init__(self) -> None:
        if self.own.pipeline.config.video_size is None:
            raise UsageError(
                f"{self.own.pipeline.bundle.folder}: has no VAE, so there are no pictures to judge"
            )
        if self.other is not None:
            require_comparable(self.own, self.other)
        for case in self.cases:
            for maker in (self.own, self.other):
                if maker is not None:
                    # What a bundle cannot make is refused before any video.
                    maker.plan(case)

    @property
    def cases(self) -> list[Case]:
        return cases(self.asked, self.own.pipeline.config, self.lengths)

    @property
    def key(self) -> str:
        """Of all that decides what is measured."""
        decisive = [
            FORMAT,
            *(_identity(maker) for maker in (self.own, self.other)),
            asdict(self.asked),
            asdict(self.lengths),
            {name: _digest(path) for name, path in self.weights.items()},
            self.extras.judges,
            self.extras.clips and self.extras.clips.model,
        ]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _identity(maker: Maker | None) -> Any:
    if maker is None:
        return None
    # What a preset says may change under the same name.
    config = runtime_config(maker.pipeline.config, maker.preset, maker.overrides)
    decoder = maker.decoder or (load_preset(maker.preset).build.decoder if maker.preset else None)
    return [maker.pipeline.bundle.manifest.key, maker.switch, decoder, config_values(config)]


def _digest(path: Path) -> str:
    if path.is_file():
        return sha256_file(path)
    files = sorted(inner for inner in path.rglob("*") if inner.is_file())
    return "".join(sha256_file(inner) for inner in files)


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """One run at a time writes a report."""
    out.parent.mkdir(parents=True, exist_ok=True)
    claim = Claim(real_path(out))
    try:
        yield
    finally:
        claim.release()


def measure(
    evaluation: Evaluation, ledger: Ledger, report: Report, notify: Notify, stop: StopRequest
) -> bool:
    """Make what is not in the ledger yet; False if it was stopped before the end."""
    wanted = evaluation.cases
    missing = [case for case in wanted if not ledger.has(case.kind, case.number)]
    if len(missing) < len(wanted):
        notify(f"going on: {len(wanted) - len(missing)} of {len(wanted)} videos were measured")
    ledger.begin()
    counter = _Counter(missing, report, stop)
    for number, case in enumerate(missing, len(wanted) - len(missing) + 1):
        counter.what = f"{case.name}: video {number} of {len(wanted)}"
        line = roll(case, evaluation.own, evaluation.other, evaluation.extras, counter.block)
        if line is None:
            return False
        ledger.add(line)
    return True


class _Counter:
    """Blocks of all videos, as a bar shows them."""

    def __init__(self, missing: Sequence[Case], report: Report, stop: StopRequest) -> None:
        self._total = sum(case.blocks for case in missing)
        self._report, self._stop = report, stop
        self._done = 0
        self.what = ""

    def block(self) -> bool:
        self._done += 1
        self._report(self.what, self._done, self._total)
        return not self._stop.is_asked
