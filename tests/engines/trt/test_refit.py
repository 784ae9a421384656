"""Weights go back into stripped engines, and only the very weights that were taken out."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longlive_trt.engines.build import bundle_entries
from longlive_trt.engines.bundles.bundle import EngineKind, Manifest, open_bundle
from longlive_trt.engines.trt import refit as tensorrt_refit
from longlive_trt.engines.trt.refit import refit
from longlive_trt.errors import EngineError, UsageError
from longlive_trt.exports import read_export


def silent(_what: str, _done: int, _total: int) -> None:
    pass


class FakeTensorRt:
    """The calls of a refit, in order."""

    SerializationFlag = SimpleNamespace(EXCLUDE_WEIGHTS="exclude")
    ILogger = type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0})

    def __init__(self, takes_weights: bool = True) -> None:
        self.calls: list[str] = []
        self._takes_weights = takes_weights

    def Runtime(self, _logger: Any) -> Any:  # noqa: N802
        return SimpleNamespace(deserialize_cuda_engine=self._engine)

    def _engine(self, plan: bytes) -> Any:
        flags = {"exclude"}
        config = SimpleNamespace(clear_flag=flags.discard)
        return SimpleNamespace(
            create_serialization_config=lambda: config,
            serialize_with_config=lambda _config: plan + b" and weights" if not flags else plan,
        )

    def Refitter(self, _engine: Any, _logger: Any) -> Any:  # noqa: N802
        def apply() -> bool:
            self.calls.append("refit")
            return self._takes_weights

        return SimpleNamespace(refit_cuda_engine=apply, get_missing_weights=lambda: ["w1"])

    def OnnxParserRefitter(self, _refitter: Any, _logger: Any) -> Any:  # noqa: N802
        def take(model: bytes, path: str) -> bool:
            assert b"weights" in model
            self.calls.append(Path(path).name)
            return True

        return SimpleNamespace(refit_from_bytes=take)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    return use(FakeTensorRt(), monkeypatch)


def use(fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    flavor = SimpleNamespace(load=lambda: fake)
    monkeypatch.setattr(tensorrt_refit, "FLAVORS", {"tensorrt": flavor})
    monkeypatch.setattr(tensorrt_refit, "device_facts", lambda: None)
    return fake


@pytest.fixture
def stripped(tiny_export: Path, tmp_path: Path) -> Path:
    record, folder = read_export(tiny_export), tmp_path / "stripped"
    folder.mkdir()
    for graph in record.graphs:
        (folder / f"{graph}.engine").write_bytes(b"plan of " + graph.encode())
    (folder / "report.json").write_text("{}")
    shutil.copyfile(tiny_export / "tokenizer.json", folder / "tokenizer.json")
    manifest = Manifest(
        key="0" * 64,
        config=record.config,
        engine=EngineKind("tensorrt", "11.4.0.106", "sm90"),
        precision="fp16",
        graphs=record.graphs,
        checkpoints=record.checkpoints,
        onnx=record.files,
        files=bundle_entries(folder),
        options={"strip": True, "attention": "standard"},
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    return folder


def test_every_graph_is_refitted_and_the_bundle_is_whole(
    stripped: Path, tiny_export: Path, tmp_path: Path, trt: FakeTensorRt
) -> None:
    out = tmp_path / "whole"
    refit(stripped, tiny_export, out, silent)
    whole = open_bundle(out)
    before = open_bundle(stripped).manifest
    assert whole.manifest.options == {"strip": False, "attention": "standard"}
    assert whole.manifest.key != before.key
    assert (out / "step.engine").read_bytes() == b"plan of step and weights"
    assert trt.calls == [part for name in before.graphs for part in (f"{name}.onnx", "refit")]
    with pytest.raises(UsageError, match="nothing to refit"):
        refit(out, tiny_export, tmp_path / "again", silent)


def test_another_export_is_refused_by_its_hash(
    stripped: Path, tiny_export: Path, tmp_path: Path, trt: FakeTensorRt
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    record = json.loads((tiny_export / "export.json").read_text())
    record["files"]["transformer.weights"] = "f" * 64
    (other / "export.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"transformer\.weights differ \(sha256 ffff.*expected"):
        refit(stripped, other, tmp_path / "whole", silent)
    assert not (tmp_path / "whole").exists()
    assert trt.calls == []


def test_weights_that_are_missing_leave_no_bundle(
    stripped: Path, tiny_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeTensorRt(takes_weights=False), monkeypatch)
    with pytest.raises(EngineError, match=r"graph step: weights are missing: w1"):
        refit(stripped, tiny_export, tmp_path / "whole", silent)
    assert not (tmp_path / "whole").exists()
