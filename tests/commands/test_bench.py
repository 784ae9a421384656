"""``longlive-trt bench`` as a user runs it: its outputs, bad input, and Ctrl-C."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longlive_trt.cli import INTERRUPTED, main
from longlive_trt.commands.running.bench import QUICK

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("--blocks", "2", "--switches", "1", "--seconds", "0.01", "--warmup", "0")
Refused = Callable[..., None]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mini(mini_bundle: Callable[[str], Path]) -> str:
    return str(mini_bundle("relative"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs a command that must be refused before anything is measured or made."""

    def run(*arguments: object, words: tuple[str, ...], code: int = 2) -> None:
        def measured(*_: object) -> None:
            pytest.fail("a session was opened")

        monkeypatch.setattr("longlive_trt.runtime.assembly.Engines.session", measured)
        before = sorted(Path().rglob("*"))
        assert main(["bench", *map(str, arguments)]) == code
        output = capsys.readouterr()
        assert output.out == "" and all(word in output.err for word in words), output.err
        assert sorted(Path().rglob("*")) == before

    return run


def test_a_whole_run_in_small(video_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = ("--out", "new/report.json", "--plot", "latency.png", "--json")
    options = ("--quick", *SHORT, "--peak-tflops", "0.1")
    assert main(["bench", "--bundle", str(video_bundle), *options, *outputs]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert Path("new/report.json").read_text() == output.out
    assert Path("latency.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in Path().rglob("*")) == ["latency.png", "new", "report.json"]
    assert [line.partition(" ")[0] for line in output.err.splitlines()] == [
        *("loading", "first", "steady", "prompt", "throughput")
    ]
    assert (report["outcome"], report["notices"]) == ("complete", [])
    (one,) = report["bundles"]
    assert one["steady_state_ms"].keys() == {"transformer", "vae", "block"}
    assert all(part["count"] == 2 for part in one["steady_state_ms"].values())
    assert one["switches_ms"].keys() == {
        *("encode", "recache", "next block", "decode", "rest", "total")
    }
    assert one["announced_switches_ms"] == one["announcing_ms"] == {}
    assert one["loading"].keys() == {"step", "prompt", "text", "vae_first", "vae_next"}
    assert set(one["graph_runs_ms"]) == {"step", "vae_next", "prompt", "text"}
    assert one["throughput"]["blocks"] >= 1 and one["video_frames_per_s"]["overlapped"] > 0
    shares = one["roofline"]["share_of_peak"]
    assert shares["vae"] == pytest.approx(one["roofline"]["tflops"]["vae"] / 0.1, rel=0.05)
    assert report["resources"].keys() == {
        *("loading", "first frame", "steady state", "prompt switches", "throughput")
    }


def test_a_transformer_alone(mini: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--bundle", mini, *SHORT]) == 0
    output = capsys.readouterr()
    assert "no VAE inside" in output.err and "random text states" in output.err
    assert "block to latents" in output.out and "VAE" not in output.out
    assert "first pictures" not in output.out


def test_two_bundles(mini: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--bundle", mini, "--compare", mini, *SHORT, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["bundles"]) == 2
    assert 0.1 < report["comparison"]["transformer"]["ratio_of_medians"] < 10
    assert "overlapped" in report["comparison"]


def test_quick_is_a_base_for_other_lengths(mini: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--bundle", mini, "--quick", "--seconds", "0", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert (settings["blocks"], settings["switches"]) == (QUICK.blocks, QUICK.switches)
    assert settings["seconds"] == 0


def test_a_report_that_exists_is_kept(mini: str, refused: Refused) -> None:
    Path("r.json").write_text("precious")
    refused("--bundle", mini, *SHORT, "--out", "r.json", words=("r.json", "--overwrite"))
    assert Path("r.json").read_text() == "precious"


def test_a_report_that_exists_can_be_replaced(mini: str) -> None:
    Path("r.json").write_text("old")
    assert main(["bench", "--bundle", mini, *SHORT, "--out", "r.json", "--overwrite"]) == 0
    assert json.loads(Path("r.json").read_text())["outcome"] == "complete"


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (("--blocks", "0"), ("--blocks", "0", "x>=1"), 2),
        (("--switches", "-1"), ("--switches", "-1"), 2),
        (("--seconds", "-1"), ("--seconds", "-1"), 2),
        (("--seconds", "nan"), ("--seconds", "nan"), 2),
        (("--seconds", "inf"), ("--seconds", "inf"), 2),
        (("--peak-tflops", "0"), ("--peak-tflops",), 2),
        (("--device", "tpu"), ("--device", "tpu", "cuda"), 2),
        (("--plot", "p.jpg"), ("p.jpg", ".png"), 2),
        (("--plot", "a.png", "--out", "./a.png"), ("a.png", "two outputs"), 2),
        (("--out", "."), ("is a folder",), 2),
        (("--out", "/proc/report.json"), ("/proc", "the system's own"), 2),
        (("--compare", "nowhere"), ("nowhere", "no such folder", "longlive-trt build"), 2),
    ],
)
def test_bad_input(
    mini: str, refused: Refused, arguments: tuple[str, ...], words: tuple[str, ...], code: int
) -> None:
    refused("--bundle", mini, *arguments, words=words, code=code)


def test_no_bundle(refused: Refused) -> None:
    refused("--bundle", "nowhere", words=("nowhere", "no such folder"))
    refused(words=("--bundle",))


def test_another_model_is_no_comparison(
    mini: str, mini_bundle: Callable[[str], Path], refused: Refused
) -> None:
    other = mini_bundle("absolute")
    refused("--bundle", mini, "--compare", other, words=("--compare", "another model"))


@pytest.mark.parametrize("presses", [1, 2])
def test_an_interrupted_run_leaves_a_report_that_says_so(
    mini: str, tmp_path: Path, presses: int
) -> None:
    arguments = ("--bundle", mini, "--blocks", "1000000", "--no-decode", "--out", "r.json")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "bench", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("steady state"):
            break
    for _ in range(presses):
        process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, errors
    assert output.startswith("INTERRUPTED") and "Traceback" not in errors
    report: dict[str, Any] = json.loads((tmp_path / "r.json").read_text())
    assert report["outcome"] == "interrupted"
    assert report["bundles"][0]["throughput"] is None
    assert {path.name for path in tmp_path.iterdir()} == {"r.json"}
