"""What every training leg needs: its processes, its clock, its journal and its checkpoints."""

import argparse
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from longlive_trt.demo.training.optimizer import MuonAdam
from longlive_trt.errors import CheckpointError, LongLiveError, UsageError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """This process among those of a leg, one for each device."""

    rank: int
    count: int
    device: torch.device

    @classmethod
    def start(cls, device: str, seed: int) -> "Worker":
        """As ``torchrun`` says; without it, the only one."""
        rank, count = (int(os.environ.get(k, v)) for k, v in (("RANK", "0"), ("WORLD_SIZE", "1")))
        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError(
                "training needs a GPU with CUDA and torch finds none; --device cpu tries the code "
                "with sizes too small to learn anything"
            )
        place = torch.device(device)
        if device == "cuda":
            place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(place)
            torch.backends.cudnn.benchmark = True
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        if count > 1:
            dist.init_process_group("nccl" if device == "cuda" else "gloo")
        torch.manual_seed(seed * 1000 + rank)
        return cls(rank, count, place)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def averaged(self, values: Tensor) -> Tensor:
        """In place, over all workers."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values

    def told(self, value: float) -> float:
        """What the leading worker says."""
        if self.count == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(told, 0)
        return float(told.item())

    def finish(self) -> None:
        if self.count > 1:
            dist.destroy_process_group()


@dataclass
class Clock:
    """How far a training is that takes ``total_s`` of which ``before_s`` are done."""

    leg_s: float
    total_s: float
    before_s: float = 0.0
    begun: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.begun

    @property
    def done_s(self) -> float:
        return self.before_s + self.elapsed_s

    @property
    def share(self) -> float:
        return min(1.0, self.done_s / self.total_s)

    @property
    def is_over(self) -> bool:
        return self.elapsed_s >= self.leg_s or self.done_s >= self.total_s


def rate(share: float, step: int, warm_steps: int, flat_until: float = 0.3) -> float:
    """A learning rate's factor: a short rise, a plateau, then a half cosine to 2%."""
    falls = max(0.0, share - flat_until) / (1 - flat_until)
    fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, falls)))
    return min(1.0, (step + 1) / warm_steps) * fall


class Journal:
    """One JSON line for every report, appended as it happens."""

    def __init__(self, path: Path, worker: Worker) -> None:
        self._path, self._leads = path, worker.leads
        path.parent.mkdir(parents=True, exist_ok=True)

    def report(self, **values: Any) -> None:
        if not self._leads:
            return
        line = json.dumps(values)
        log.info(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def lines(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text().splitlines()]


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Written under another name first: an interrupted leg leaves the last checkpoint whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(path.suffix + ".part")
    torch.save(state, unfinished)
    unfinished.replace(path)


def save_checkpoint(
    path: Path, optimizer: dict[str, Tensor], clock: Clock, step: int, best: float = 0.0
) -> None:
    """What the next leg goes on from, as long as it is sound."""
    if not bool(optimizer["values"].isfinite().all()):
        raise CheckpointError(
            f"weights are no longer finite at step {step}; go on from {path} with lower rates"
        )
    save_state(path, {"optimizer": optimizer, "done_s": clock.done_s, "step": step, "best": best})


def train(
    worker: Worker,
    clock: Clock,
    *,
    reports: int,
    check_every: int,
    pace: Callable[[float, int], None],
    step: Callable[[], None],
    report: Callable[[float, int], None],
) -> None:
    """Step until the leg is over, the same number of times on every worker, a few at least.

    ``pace`` gets, now and then, the share of the training that is done and the steps of this leg;
    ``report`` the seconds that a step took since the last report (0 at the end), and the steps.
    """
    steps, reported_s, reported_steps = 0, 0.0, 0
    while True:
        if steps % check_every == 0:
            share = worker.told(2.0 if clock.is_over else clock.share)
            if share > 1 and steps:
                break
            pace(share, steps)
            since_s = clock.elapsed_s - reported_s
            if since_s > clock.leg_s / reports and steps > reported_steps:
                report(since_s / (steps - reported_steps), steps)
                reported_s, reported_steps = clock.elapsed_s, steps
        step()
        steps += 1
    report(0.0, steps)


class TimedLeg:
    """A stretch of training between two checkpoints; each kind fills in what it learns."""

    worker: Worker
    optimizer: MuonAdam
    check_every = 10
    before_s, step = 0.0, 0

    def _resume(self, path: Path) -> dict[str, Any]:
        state = load_state(path, self.worker.device)
        self.optimizer.load(state["optimizer"])
        self.before_s, self.step = float(state["done_s"]), int(state["step"])
        return state

    def _train(self, leg_s: float, total_s: float, reports: int, step: Callable[[], None]) -> None:
        clock = Clock(leg_s, total_s, self.before_s)
        train(
            self.worker,
            clock,
            reports=reports,
            check_every=self.check_every,
            pace=self._pace,
            step=step,
            report=partial(self._report, clock),
        )
        if self.worker.leads:
            self._draw()

    def _pace(self, share: float, steps: int) -> None:
        raise NotImplementedError

    def _report(self, clock: Clock, step_s: float, steps: int) -> None:
        raise NotImplementedError

    def _draw(self) -> None:
        raise NotImplementedError


def leg_parser(doc: str | None, settings: type[Any]) -> argparse.ArgumentParser:
    """The options of every leg; defaults are those of its settings."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--leg-s", type=float, default=480, help="seconds of this leg")
    parser.add_argument("--total-s", type=float, default=480, help="seconds of the whole training")
    parser.add_argument("--resume", type=Path, help="the state that an earlier leg left")
    parser.add_argument("--batch", type=int, default=settings.batch)
    parser.add_argument("--pool", type=int, default=settings.pool)
    parser.add_argument("--muon-rate", type=float, default=settings.muon_rate)
    parser.add_argument("--adam-rate", type=float, default=settings.adam_rate)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser


class Settings(Protocol):
    @property
    def seed(self) -> int: ...


class Leg(Protocol):
    def run(self) -> None: ...


S = TypeVar("S", bound=Settings)


def run_leg(
    parser: argparse.ArgumentParser,
    make_settings: Callable[..., S],
    make_leg: Callable[[S, Worker], Leg],
) -> None:
    """Of a module that is run as a command."""
    chosen = vars(parser.parse_args())
    device = chosen.pop("device")

    def leg() -> None:
        settings = make_settings(**chosen)
        worker = Worker.start(device, settings.seed)
        make_leg(settings, worker).run()
        worker.finish()

    run_as_command(leg)


def run_as_command(leg: Callable[[], None]) -> None:
    """Log what it reports; an expected failure is one line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        leg()
    except LongLiveError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint; train without --resume first") from None
    except Exception as error:  # a damaged archive raises many kinds
        raise CheckpointError(f"{path}: not a checkpoint of a training leg ({error})") from error
    return state
