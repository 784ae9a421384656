import json
from pathlib import Path

import pytest
import torch

from longlive_trt.demo.training.legs import (
    Clock,
    Journal,
    Worker,
    load_state,
    rate,
    run_as_command,
    save_checkpoint,
    save_state,
    train,
)
from longlive_trt.errors import CheckpointError, UsageError


@pytest.fixture
def worker() -> Worker:
    return Worker.start("cpu", seed=1)


def test_a_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="training needs a GPU with CUDA"):
        Worker.start("cuda", seed=1)


def test_one_worker_averages_nothing(worker: Worker) -> None:
    assert worker.leads
    assert torch.equal(worker.averaged(torch.ones(2)), torch.ones(2))
    assert worker.told(0.25) == 0.25


def test_a_state_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.pt"
    save_state(path, {"step": 3, "values": torch.ones(2)})
    assert load_state(path, torch.device("cpu"))["step"] == 3
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]


def test_a_missing_or_damaged_state_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_state(tmp_path / "none.pt", torch.device("cpu"))
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"not an archive")
    with pytest.raises(CheckpointError, match="not a checkpoint of a training leg"):
        load_state(damaged, torch.device("cpu"))


def test_weights_that_are_not_finite_leave_the_last_checkpoint(tmp_path: Path) -> None:
    path, clock = tmp_path / "state.pt", Clock(leg_s=1.0, total_s=2.0)
    save_checkpoint(path, {"values": torch.ones(2)}, clock, step=4)
    with pytest.raises(CheckpointError, match="no longer finite at step 5"):
        save_checkpoint(path, {"values": torch.tensor([1.0, float("nan")])}, clock, step=5)
    assert load_state(path, torch.device("cpu"))["step"] == 4


def test_an_expected_failure_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def leg() -> None:
        raise UsageError("no GPU")

    with pytest.raises(SystemExit) as stopped:
        run_as_command(leg)
    assert stopped.value.code == UsageError.exit_code
    assert caplog.messages == ["no GPU"]


def test_the_rate_rises_stays_and_falls() -> None:
    assert rate(0.0, 0, warm_steps=10) == pytest.approx(0.1)
    assert rate(0.2, 100, warm_steps=10) == 1.0
    assert rate(0.6, 100, warm_steps=10) < 0.7
    assert rate(1.0, 100, warm_steps=10) == pytest.approx(0.02)


def test_a_leg_ends_by_its_own_time_or_the_training_s() -> None:
    assert Clock(leg_s=0.0, total_s=100.0).is_over
    assert Clock(leg_s=50.0, total_s=100.0, before_s=100.0).is_over
    half = Clock(leg_s=50.0, total_s=100.0, before_s=50.0)
    assert not half.is_over
    assert half.share == pytest.approx(0.5, abs=0.01)


def test_the_journal_keeps_a_line_a_report(tmp_path: Path, worker: Worker) -> None:
    journal = Journal(tmp_path / "log.jsonl", worker)
    journal.report(step=1)
    Journal(tmp_path / "log.jsonl", worker).report(step=2)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert [line["step"] for line in journal.lines()] == [1, 2]


def test_a_leg_paces_steps_and_reports_until_its_time_is_over(worker: Worker) -> None:
    now = [0.0]
    paced: list[tuple[float, int]] = []
    reported: list[tuple[float, int]] = []

    class Told(Clock):
        @property
        def elapsed_s(self) -> float:
            return now[0]

    def step() -> None:
        now[0] += 0.0625

    train(
        worker,
        Told(leg_s=1.0, total_s=4.0, before_s=2.0),
        reports=2,
        check_every=4,
        pace=lambda share, steps: paced.append((share, steps)),
        step=step,
        report=lambda step_s, steps: reported.append((step_s, steps)),
    )
    assert paced == [(0.5, 0), (0.5625, 4), (0.625, 8), (0.6875, 12)]
    assert reported == [(0.0625, 12), (0.0, 16)]
