"""The report on the machine: right about what is there, and never stuck on what is broken."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from longlive_trt import doctor, probes
from longlive_trt.cli import main
from longlive_trt.doctor import Finding, Gpu, examine
from longlive_trt.extras import engine_command, install_command
from longlive_trt.probes import ProbeError, child_answer, command_output

ROOT = Path(__file__).resolve().parents[2]
SMI_H100 = "NVIDIA H100 80GB HBM3, 81559, 9.0, 580.65.06"
NO_LIBCUDA = "raise SystemExit('OSError: libcuda.so.1: cannot open shared object file')"

AddProgram = Callable[[str, str], Path]


@pytest.fixture
def add_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AddProgram:
    """Puts a shell script on an otherwise plain PATH, which has no NVIDIA tools."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "sleep", "cat"):
        (folder / tool).symlink_to(f"/bin/{tool}")
    monkeypatch.setenv("PATH", str(folder))

    def add(name: str, script: str) -> Path:
        program = folder / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return program

    return add


@pytest.fixture(autouse=True)
def plain_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, add_program: AddProgram) -> None:
    """No GPU, no driver, and quick answers from the child processes."""
    monkeypatch.setattr(doctor, "CUDA_DRIVER", NO_LIBCUDA)
    monkeypatch.setattr(probes, "PCI_DEVICES", tmp_path / "no-devices")
    pretend_answer(monkeypatch, "ONNXRUNTIME_PROVIDERS", ["CPUExecutionProvider"])
    pretend_answer(monkeypatch, "H264_ENCODERS", ["libx264"])


def pretend_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    known = {name.replace("_", "-"): version for name, version in versions.items()}
    original = probes.installed_version
    monkeypatch.setattr(
        doctor, "installed_version", lambda name: known[name] if name in known else original(name)
    )


def pretend_answer(monkeypatch: pytest.MonkeyPatch, source: str, answer: object) -> None:
    monkeypatch.setattr(doctor, source, f"import json; print(json.dumps({answer!r}))")


def finding(piece: str) -> Finding:
    (found,) = [found for found in examine() if found.piece == piece]
    return found


def test_every_piece_is_reported() -> None:
    pieces = {found.piece for found in examine()}
    assert pieces >= {
        *("Python", "longlive-trt", "CPU", "memory", "disk", "onnx", "onnxruntime", "torch"),
        *("video (PyAV)", "GPU", "NVIDIA driver", "cuda-python", "nvcc"),
        *("TensorRT", "TensorRT-RTX", "ModelOpt"),
    }


def test_what_is_installed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ONNXRUNTIME_PROVIDERS", probes.ONNXRUNTIME_PROVIDERS)
    monkeypatch.setattr(doctor, "H264_ENCODERS", probes.H264_ENCODERS)
    assert "CPU" in finding("onnxruntime").detail
    assert "libx264" in finding("video (PyAV)").detail
    assert finding("Python").status == "ok"


@pytest.mark.parametrize(
    ("piece", "distribution", "remedy"),
    [
        ("torch", "torch", install_command("export")),
        ("onnxscript", "onnxscript", install_command("export")),
        ("onnx", "onnx", "pip install onnx"),
        ("onnxruntime", "onnxruntime", install_command("cpu")),
        ("video (PyAV)", "av", "pip install av"),
        ("ModelOpt", "nvidia_modelopt", install_command("quantize")),
        ("cuda-python", "cuda_bindings", engine_command("gpu")),
        ("TensorRT", "tensorrt_cu13_libs", install_command("tensorrt")),
        ("TensorRT-RTX", "tensorrt_rtx_cu13_libs", install_command("tensorrt-rtx")),
    ],
)
def test_missing_packages_come_with_a_command(
    piece: str, distribution: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"onnxruntime": "1.31.1", "onnxruntime_gpu": None, "tensorrt": None}
    pretend_versions(monkeypatch, **{**versions, distribution: None})
    found = finding(piece)
    assert (found.status, found.remedy) == ("missing", remedy)


def test_a_piece_without_its_undeclared_needs_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_versions(monkeypatch, nvidia_modelopt="0.47.0", requests=None, huggingface_hub="1")
    found = finding("ModelOpt")
    assert (found.status, found.detail) == ("problem", "no requests")


def test_without_an_engine_the_gpu_packages_bring_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_versions(monkeypatch, onnxruntime=None, onnxruntime_gpu=None, cuda_bindings=None)
    assert finding("cuda-python").remedy == install_command("gpu")


def test_a_gpu_build_of_onnxruntime_without_cuda_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_versions(monkeypatch, onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
    pretend_answer(monkeypatch, "ONNXRUNTIME_PROVIDERS", ["CPUExecutionProvider"])
    found = finding("onnxruntime")
    assert found.status == "problem"
    assert found.remedy == engine_command("gpu")

    pretend_answer(monkeypatch, "ONNXRUNTIME_PROVIDERS", ["CUDAExecutionProvider"])
    assert finding("onnxruntime") == Finding("onnxruntime", "ok", "1.31.1, providers: CUDA")


def test_a_package_that_crashes_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_versions(monkeypatch, onnxruntime="1.31.1", onnxruntime_gpu=None)
    monkeypatch.setattr(doctor, "ONNXRUNTIME_PROVIDERS", "import os; os.abort()")
    found = finding("onnxruntime")
    assert (found.status, found.remedy) == ("problem", engine_command("cpu"))


def test_video_without_libx264_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_answer(monkeypatch, "H264_ENCODERS", [])
    assert finding("video (PyAV)").status == "problem"


def test_no_gpu_is_an_answer() -> None:
    assert finding("GPU") == Finding("GPU", "missing", "no NVIDIA GPU; engines run on the CPU")
    assert finding("NVIDIA driver") == Finding("NVIDIA driver", "missing", "not installed")


def test_a_gpu_without_driver_gets_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor = tmp_path / "devices" / "0000:01:00.0" / "vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("0x10de\n")
    monkeypatch.setattr(probes, "PCI_DEVICES", tmp_path / "devices")
    assert finding("GPU").status == "problem"
    assert finding("NVIDIA driver").remedy == doctor.INSTALL_DRIVER


def test_gpus_as_nvidia_smi_tells(add_program: AddProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    add_program("nvidia-smi", f"echo '{SMI_H100}'\necho '{SMI_H100}'")
    pretend_answer(monkeypatch, "CUDA_DRIVER", {"cuda": "13.0", "gpus": []})
    gpus = [found for found in examine() if found.piece == "GPU"]
    detail = "NVIDIA H100 80GB HBM3, 80 GiB, compute capability 9.0"
    assert gpus == [Finding("GPU", "ok", detail)] * 2
    assert finding("NVIDIA driver").detail == "580.65.06, runs CUDA up to 13.0"


def test_gpus_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"cuda": "12.8", "gpus": [["NVIDIA L4", 24 * 1024**3, "8.9"]]}
    pretend_answer(monkeypatch, "CUDA_DRIVER", answer)
    assert finding("GPU").detail == "NVIDIA L4, 24 GiB, compute capability 8.9"
    assert finding("NVIDIA driver").detail == "version unknown, runs CUDA up to 12.8"


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo 'No devices were found' >&2; exit 6", "nvidia-smi failed: No devices were found"),
        ("echo '[N/A], [N/A]'", "which is not a GPU"),
    ],
)
def test_a_failing_nvidia_smi_is_quoted(
    script: str, complaint: str, add_program: AddProgram
) -> None:
    add_program("nvidia-smi", script)
    found = finding("NVIDIA driver")
    assert found.status == "missing"
    assert complaint in found.detail


def test_a_hanging_nvidia_smi_does_not_hang_the_report(
    add_program: AddProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The child of the script keeps the pipe open: ending the script alone would not be enough.
    pid_file = tmp_path / "pid"
    add_program("nvidia-smi", f"sleep 300 &\necho $! > {pid_file}\nwait")
    monkeypatch.setattr(doctor, "GPU_QUERY_LIMIT_S", 0.5)
    started = time.monotonic()
    found = finding("NVIDIA driver")
    assert time.monotonic() - started < 30
    assert found.detail == "nvidia-smi did not answer within 0.5 s"
    assert is_gone(int(pid_file.read_text()))


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_driver_library_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CUDA_DRIVER", "import time; time.sleep(300)")
    monkeypatch.setattr(doctor, "GPU_QUERY_LIMIT_S", 0.5)
    assert "did not answer within 0.5 s" in finding("NVIDIA driver").detail


def test_nvcc(add_program: AddProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    program = add_program("nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.48'")
    assert finding("nvcc") == Finding("nvcc", "ok", f"13.0 ({program})")


def test_memory_is_what_the_container_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(f"{doctor.GIB // 2}\n")
    monkeypatch.setattr(doctor, "MEMORY_LIMIT", limit)
    assert finding("memory").detail.startswith("0.5 GiB")


def test_a_probe_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_sensor() -> object:
        raise RuntimeError("the sensor is gone")

    monkeypatch.setattr(doctor.psutil, "virtual_memory", broken_sensor)
    found = finding("machine")
    assert found == Finding("machine", "problem", "could not be examined: the sensor is gone")


def test_the_table_and_the_json_tell_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    table = capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert len(findings) > 10
    for entry in findings:
        assert set(entry) == {"piece", "status", "detail", "remedy"}
        assert entry["piece"] in table
        assert (entry["remedy"] or "") in table


def test_nothing_heavy_is_imported() -> None:
    source = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r});"
        "from longlive_trt.doctor import examine; examine();"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    output = command_output([sys.executable, "-c", source])
    loaded = set(output.split())
    assert "psutil" in loaded
    assert not loaded & {"torch", "onnx", "onnxruntime", "av", "tensorrt", "numpy", "modelopt"}


def test_gpu_names_may_hold_commas() -> None:
    assert doctor._parse_smi("Odd, Name, 1024, 8.9, 580.1") == Gpu(
        "Odd, Name", 1024**3, "8.9", "580.1"
    )


def test_child_answers_must_be_json() -> None:
    with pytest.raises(ProbeError, match="gave no answer"):
        child_answer("print('not json')")


def test_programs_that_cannot_run_are_named(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="absent cannot be run: No such file"):
        command_output([str(tmp_path / "absent")])


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="needs an NVIDIA GPU")
def test_the_real_driver_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CUDA_DRIVER", probes.CUDA_DRIVER)
    driver = doctor.ask_driver()
    assert driver.cuda
    assert driver.gpus
    assert driver.gpus[0].memory_bytes > 0
