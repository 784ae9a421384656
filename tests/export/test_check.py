"""Where graphs and torch are compared: a GPU may pass a graph, and only a CPU refuses it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longlive_trt.configs import ModelConfig
from longlive_trt.errors import ExportError
from longlive_trt.export import check
from longlive_trt.export.check import check_graph
from longlive_trt.export.check_runs import Tensors, run_graph
from longlive_trt.export.components import Sources, components
from longlive_trt.export.tracing import GraphSpec
from longlive_trt.export.weights_file import _is_finite
from longlive_trt.precision import precision_named

FP32 = precision_named("fp32")
Run = Callable[[torch.device], Tensors | None]


def test_without_a_gpus_runtime_there_is_no_run(tmp_path: Path, tiny_config: ModelConfig) -> None:
    spec = prompt_spec(tiny_config)
    if "CUDAExecutionProvider" in check_providers():
        pytest.skip("this one has it")
    assert run_graph(spec, tmp_path, FP32, {}, torch.device("cuda")) is None


def check_providers() -> list[str]:
    import onnxruntime

    found: list[str] = onnxruntime.get_available_providers()
    return found


def prompt_spec(config: ModelConfig) -> GraphSpec:
    parts = components(config, Sources(random_seed=0))
    return next(spec for part in parts for spec in part.graphs if spec.name == "prompt")


def checked(config: ModelConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> float:
    """On a device that is no CPU, as far as runs of the graph can tell; torch gives ones."""
    parts = components(config, Sources(random_seed=0))
    part = next(p for p in parts if any(spec.name == "prompt" for spec in p.graphs))
    monkeypatch.setattr(check, "_roomy", lambda *_: torch.device("meta"))
    monkeypatch.setattr(check._Reference, "outputs", lambda *_: {"context_k.0": torch.ones(3)})
    monkeypatch.setattr(check, "run_graph", lambda *arguments: run(arguments[-1]))
    result = check_graph(prompt_spec(config), folder, part.weights, config, FP32, "cuda")
    assert result.error is not None
    return result.error


@pytest.mark.parametrize(
    "there", [None, {"context_k.0": torch.zeros(3)}, {"context_k.0": torch.full((3,), torch.nan)}]
)
def test_what_a_gpu_cannot_run_or_computes_wrongly_is_run_on_the_cpu(
    tiny_config: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: Tensors | None,
) -> None:
    def run(device: torch.device) -> Tensors | None:
        return {"context_k.0": torch.ones(3)} if device.type == "cpu" else there

    assert checked(tiny_config, tmp_path, monkeypatch, run) == 0


def test_what_both_compute_wrongly_is_refused(
    tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExportError, match="differs from torch"):
        checked(tiny_config, tmp_path, monkeypatch, lambda _: {"context_k.0": torch.zeros(3)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_found(dtype: torch.dtype, wrong: float) -> None:
    values = torch.linspace(-3, 3, 1001).to(dtype)
    assert _is_finite(values)
    values[500] = wrong
    assert not _is_finite(values)


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_the_codes_of_float8_that_are_no_numbers_are_found(code: int) -> None:
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    numbers = codes[(codes & 0x7F) != 0x7F]
    assert _is_finite(numbers.view(torch.float8_e4m3fn))
    wrong = torch.cat([numbers, torch.tensor([code], dtype=torch.uint8)])
    assert not _is_finite(wrong.view(torch.float8_e4m3fn))
