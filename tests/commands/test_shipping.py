"""pack, unpack, push, pull, inspect, verify and export-triton as a user meets them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from longlive_trt.cli import main
from longlive_trt.commands.shipping import pull as pull_command
from longlive_trt.engines.bundles.bundle import EngineKind, open_bundle
from longlive_trt.engines.bundles.choice import Machine, MachineGpu
from longlive_trt.exports import GraphInfo, TensorInfo
from longlive_trt.runtime.verify import generated_replay

MakeBundle = Callable[..., Path]

GRAPH = GraphInfo(
    (TensorInfo("latents", "float", ("batch", 3)), TensorInfo("k_cache.0", "float", (1,))),
    (TensorInfo("k_new.0", "float", (1,)), TensorInfo("k_new.1", "float", (1,))),
)


@pytest.fixture
def bundle(tmp_path: Path, fake_bundle: MakeBundle) -> Path:
    return fake_bundle(tmp_path / "b", graphs={"step": GRAPH}, command="longlive-trt build [x]")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_from_one_machine_to_another(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    code, said, _ = run(capsys, "pack", bundle)
    assert code == 0
    assert f"packed {tmp_path / 'b.tar.zst'}: 4 files" in said
    code, said, _ = run(capsys, "push", tmp_path / "b.tar.zst", store)
    assert code == 0
    line = next(line for line in said.splitlines() if line.startswith("fetch it with: "))
    address = line.split()[-3]
    code, said, _ = run(capsys, "pull", address, "--out", out)
    assert (code, contents(out)) == (0, contents(bundle))
    assert "all checked" in said
    code, said, _ = run(capsys, "unpack", tmp_path / "b.tar.zst", "--out", tmp_path / "again")
    assert (code, contents(tmp_path / "again")) == (0, contents(bundle))


def test_pull_says_when_there_is_nothing_to_do(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "push", bundle, tmp_path / "store")
    run(capsys, "pull", tmp_path / "store", "--out", tmp_path / "out")
    code, said, _ = run(capsys, "pull", tmp_path / "store", "--out", tmp_path / "out")
    assert code == 0
    assert "left as it is" in said


def test_pull_auto_explains_its_choice(
    bundle: Path,
    tmp_path: Path,
    fake_bundle: MakeBundle,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = EngineKind("tensorrt", "11.4.0.106", "sm90")
    fast = fake_bundle(tmp_path / "fast", {"step.engine": b"p"}, engine=plan, precision="fp8")
    for folder in (bundle, fast):
        run(capsys, "push", folder, tmp_path / "store")
    machine = Machine(None, 32 * 10**9, {"onnxruntime": "1.31.1", "tensorrt": "11.4.0.106"})
    monkeypatch.setattr(pull_command, "this_machine", lambda: machine)
    code, said, _ = run(capsys, "pull", tmp_path / "store", "--auto", "--out", tmp_path / "out")
    assert (code, contents(tmp_path / "out")) == (0, contents(bundle))
    assert "this machine: no NVIDIA GPU, 32 GB of memory" in said
    assert "take: mini-relative-onnxruntime-cpu-fp32" in said
    assert "needs a GPU (sm90), and there is none here" in said

    hopper = MachineGpu("NVIDIA H100", "9.0", 80 * 10**9)
    monkeypatch.setattr(pull_command, "this_machine", lambda: Machine(hopper, 1, machine.versions))
    code, said, _ = run(capsys, "pull", tmp_path / "store", "--auto", "--out", tmp_path / "out")
    assert (code, contents(tmp_path / "out")) == (0, contents(fast))
    assert "runs on the GPU (sm90), fp8" in said

    wish = ("--precision", "int8", "--auto", "--out", tmp_path / "other")
    code, _, complaint = run(capsys, "pull", tmp_path / "store", *wish)
    assert code == 1
    assert "none of 2 bundles runs on this machine" in complaint
    assert "longlive-trt build --onnx DIR --engine tensorrt" in complaint


def test_this_machine_is_examined() -> None:
    machine = pull_command.this_machine()
    assert machine.memory_bytes > 10**9
    assert machine.versions["onnxruntime"]
    assert str(machine)


def test_inspect_is_short(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run(capsys, "inspect", bundle)
    words = ("mini-relative", "onnxruntime 1.24.0 for cpu", "step", "4 files, 0.2 MB", "build [x]")
    assert code == 0 and all(word in said for word in words)
    assert len(said.splitlines()) < 15
    entries = open_bundle(bundle).manifest.files.values()
    assert not any(entry.sha256 in said for entry in entries)


def test_inspect_shows_graphs_and_files(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "pack", bundle)
    for source in (bundle, tmp_path / "b.tar.zst"):
        code, said, _ = run(capsys, "inspect", source, "--all")
        assert code == 0
        for word in ("mini-relative", "onnxruntime 1.24.0 for cpu", "k_new.* (2)", "build [x]"):
            assert word in said
        entries = open_bundle(bundle).manifest.files
        assert all(name in said and entry.sha256 in said for name, entry in entries.items())


def test_inspect_as_json(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run(capsys, "inspect", bundle, "--json")
    values = json.loads(said)
    assert code == 0
    assert values["total_bytes"] == 202_200
    assert values["engine"]["kind"] == "onnxruntime"
    assert values["graphs"]["step"]["inputs"][0]["shape"] == ["batch", 3]


def graph_with_weights() -> bytes:
    """A graph that does nothing, with a weight in ``step.weights``."""
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    weight.ClearField("float_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="step.weights")
    graph = onnx.helper.make_graph([], "step", [], [], [weight])
    return onnx.helper.make_model(graph).SerializeToString()


def test_verify_checks_files(
    tmp_path: Path, fake_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {"step.onnx": graph_with_weights(), "step.weights": bytes(200_000)}
    bundle = fake_bundle(tmp_path / "b", contents, graphs={"step": GRAPH})
    code, said, _ = run(capsys, "verify", bundle)
    assert code == 0
    assert "2 files, 0.2 MB, all as the manifest says" in said
    code, said, _ = run(capsys, "verify", bundle, "--json")
    assert json.loads(said)["passed"] is True
    (bundle / "step.onnx").write_bytes(b"?" * len(contents["step.onnx"]))
    code, said, complaint = run(capsys, "verify", bundle)
    assert code == 1
    assert "step.onnx: altered" in complaint


@pytest.mark.parametrize(
    ("contents", "onnx_files", "message"),
    [
        ({"step.onnx": graph_with_weights()}, {}, "does not list step.weights, which graph step"),
        ({"step.weights": b"w"}, {}, "does not list step.onnx, which graph step needs"),
        (
            {"step.onnx": graph_with_weights(), "step.weights": b"w"},
            {"tokenizer.json": "0" * 64},
            "does not list tokenizer.json, which reading prompts needs",
        ),
    ],
)
def test_verify_finds_what_a_manifest_leaves_out(
    contents: dict[str, bytes],
    onnx_files: dict[str, str],
    message: str,
    tmp_path: Path,
    fake_bundle: MakeBundle,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = fake_bundle(tmp_path / "b", contents, graphs={"step": GRAPH}, onnx=onnx_files)
    code, said, complaint = run(capsys, "verify", bundle)
    assert (code, said) == (1, "")
    assert message in complaint


def test_verify_against(
    mini_bundle: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = mini_bundle("relative")
    exported = bundle.with_name("mini-relative-export")
    half = tmp_path / "half"
    build = ("build", "--onnx", exported, "--precision", "fp16", "--out", half)
    assert run(capsys, *build)[0] == 0
    replay = save_replay(bundle, tmp_path / "two.safetensors")
    against = ("verify", half, "--against", exported, "--replay", replay)
    code, said, _ = run(capsys, *against, "--json")
    values = json.loads(said)
    assert (code, values["passed"], values["tolerance"]) == (0, True, 0.02)
    assert len(values["blocks"]) == 2
    assert values["blocks"][0]["psnr_db"] is None
    assert values["against"]["precision"] == "fp32"
    code, said, _ = run(capsys, *against, "--tolerance", "1e-6")
    assert code == 1
    assert "FAILED: every error should be at most 1e-06" in said
    assert "not decoded" in said


def save_replay(bundle: Path, path: Path) -> Path:
    replay = generated_replay(open_bundle(bundle).config, [], 2)
    prompts = {f"prompt.{number}": states for number, states in replay.prompts.items()}
    schedule = [{"frame": switch.frame, "prompt": switch.prompt} for switch in replay.schedule]
    tensors = {"noise": replay.noise, "renoise": replay.renoise, **prompts}
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, path, {"schedule": json.dumps(schedule)})
    return path


def test_export_triton(
    tmp_path: Path, fake_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = EngineKind("tensorrt", "11.4.0.106", "sm90")
    text = GraphInfo((TensorInfo("ids", "int64", ("batch", 5)),), ())
    folder = fake_bundle(
        tmp_path / "plan", {"text.engine": b"p"}, engine=plan, graphs={"text": text}
    )
    code, said, _ = run(capsys, "export-triton", folder, "--out", tmp_path / "models")
    assert code == 0
    assert "mini-relative_text" in said
    assert (tmp_path / "models" / "mini-relative_text" / "config.pbtxt").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pack", "{tmp}"], 2, "not a bundle"),
        (["pack", "{tmp}/none"], 2, "not a bundle"),
        (["unpack", "{tmp}/none", "--out", "{tmp}/x"], 1, "No such file"),
        (["unpack", "{tmp}/b", "--out", "{tmp}/x"], 2, "a folder"),
        (["unpack", "{tmp}/b/step.onnx", "--out", "{tmp}/x"], 1, "not a bundle's archive"),
        (["push", "{tmp}/none", "{tmp}/s"], 2, "no such bundle"),
        (["push", "{tmp}/b/step.onnx", "{tmp}/s"], 1, "not a bundle's archive"),
        (["push", "{tmp}/b", "http://127.0.0.1/s"], 2, "over HTTP"),
        (["pull", "{tmp}/none", "--out", "{tmp}/x"], 2, "check the address"),
        (["pull", "{tmp}/b", "--precision", "fp8", "--out", "{tmp}/x"], 2, "add --auto"),
        (["pull", "{tmp}/b", "--out", "{tmp}/b/step.onnx"], 2, "in the way"),
        (["inspect", "{tmp}/none"], 2, "no such folder"),
        (["inspect", "{tmp}/b/step.onnx"], 1, "not a bundle's archive"),
        (["verify", "{tmp}/none"], 2, "no such folder"),
        (["verify", "{tmp}/b", "--blocks", "3"], 2, "add --against"),
        (["verify", "{tmp}/b", "--against", "{tmp}/none"], 2, "no such folder"),
        (["verify", "{tmp}/b", "--against", "{tmp}/b"], 2, "needs the transformer"),
        (["export-triton", "{tmp}/none", "--out", "{tmp}/x"], 2, "no such folder"),
        (["export-triton", "{tmp}/b", "--out", "{tmp}/b/step.onnx"], 2, "in the way"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    fake_bundle: MakeBundle,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_bundle(tmp_path / "b")
    before = contents(tmp_path)
    found, said, complaint = run(capsys, *(text.format(tmp=tmp_path) for text in arguments))
    assert (found, said) == (code, "")
    assert complaint.splitlines()[-1].startswith("error: ")
    assert message in complaint
    assert contents(tmp_path) == before
