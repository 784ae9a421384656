"""The commands of the pages, run one after the other in an empty folder, as a reader would.

Small files take the places of large ones under the very names that the pages give. ``SMALL`` says
what else is written otherwise here, and ``ELSEWHERE`` what takes a GPU, a network or a server;
``test_documentation.py`` gives those to the parser.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from longlive_trt.cli import main
from longlive_trt.configs import ModelConfig
from tests.documentation.documented import OURS, PAGES, Line, example_lines, shell_blocks

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(1800)]

BY_NAME = {page.name: page for page in PAGES}
SMALL = (
    ("--config longlive-1.3b", "--config tiny"),
    ("--transformer ... --precision bf16", "--random-weights 0"),
    ("--transformer ... --precision fp16", "--random-weights 0"),
    ("--device cuda --compute bf16 --report", "--max-prompts 2 --blocks 2"),
    ("--precision fp8 --out onnx-fp8", "--precision fp8 --max-prompts 2 --blocks 2 --out onnx-fp8"),
    ("--max-prompts 8 --report", "--max-prompts 2 --blocks 2"),
    ("s3://bucket/longlive", "store"),
    ("/mnt/models", "store"),
    ("bench --bundle", "bench --blocks 2 --switches 3 --seconds 1 --warmup 1 --bundle"),
    ("--seconds inf", "--frames 3"),
    (" | ffplay -", " | cat"),
    ("--timeline story.yaml", "--frames 24 --timeline story.yaml"),
)
ELSEWHERE = (
    *("--engine tensorrt", "--gpu sm", "docker ", "longlive-trt refit", "https://example.com"),
    *("pip ", "make ", "python -m ", "scripts/", "ssh ", "eval "),
    *("longlive-trt serve", "longlive-trt fleet", "--replay FILE", "--bundle bundle-gpu/"),
)


def runs_here(line: Line) -> bool:
    return line.text.startswith(OURS) and not any(word in line.text for word in ELSEWHERE)


def small(text: str) -> str:
    for written, here in SMALL:
        text = text.replace(written, here)
    return text


def run(line: Line) -> None:
    """What comes after a pipe is another program's."""
    words = shlex.split(small(line.text).partition(" | ")[0])
    assert main(words[1:]) == 0, line.text


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoints(desk: Path) -> None:
    """Wan's and LongLive's files, of the size of the model ``tiny``."""
    import torch

    from longlive_trt.configs import load_config
    from longlive_trt.export.checkpoints.random import RandomWeights
    from longlive_trt.export.components import expected_shapes
    from longlive_trt.export.demo_tokenizer import write_demo_tokenizer
    from longlive_trt.export.models.text_encoder import TextEncoder
    from longlive_trt.export.models.transformer import Transformer
    from longlive_trt.export.models.vae import VaeDecoder

    config = load_config("tiny")
    assert config.vae is not None and config.text_encoder is not None
    vae, encoder = config.vae, config.text_encoder
    models = {
        "longlive/models/longlive_base.pt": lambda: Transformer(config.transformer),
        "wan/Wan2.1_VAE.pth": lambda: VaeDecoder(vae),
        "wan/models_t5_umt5-xxl-enc-bf16.pth": lambda: TextEncoder(encoder),
    }
    for name, make in models.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = RandomWeights(expected_shapes(make), 0)
        torch.save({name: weights.load(name) for name in weights.names}, path)
    shapes = expected_shapes(lambda: Transformer(config.transformer))
    adapted = "blocks.0.self_attn.q"
    rows, columns = shapes[f"{adapted}.weight"]
    adapter = {
        f"base_model.model.{adapted}.lora_A.weight": torch.randn(2, columns),
        f"base_model.model.{adapted}.lora_B.weight": torch.randn(rows, 2) * 1e-3,
    }
    torch.save(adapter, "longlive/models/lora.pt")
    write_demo_tokenizer(Path("wan/google/umt5-xxl"), encoder.vocab)


@pytest.fixture
def parts(desk: Path, tiny_bundle: Path, tiny_export: Path, tiny_config: ModelConfig) -> None:
    """What the pages call a reader's own."""
    import shutil

    import numpy as np
    from safetensors.numpy import save_file

    bundles = ("BUNDLE", "A", "B", "REFERENCE", "bundle", "bundle-fp8")
    exports = dict.fromkeys(("onnx", "onnx-with-taehv"), tiny_export)
    for name, source in {**dict.fromkeys(bundles, tiny_bundle), **exports}.items():
        shutil.copytree(source, name)
    latents = np.zeros((1, 3, *tiny_config.latent_shape), np.float32)
    save_file({"latents": latents}, "video.safetensors")


def own_lines(page: str) -> Iterator[Line]:
    for block in shell_blocks(BY_NAME[page]):
        yield from filter(runs_here, block)


def test_readme_from_top_to_bottom(checkpoints: None) -> None:
    lines = list(own_lines("README.md"))
    assert [line.text.split()[1] for line in lines][:3] == ["export", "build", "generate"]
    for line in lines:
        run(line)
    assert Path("fox.mp4").stat().st_size > 0


@pytest.mark.parametrize(
    "page", ["bench.md", "commands.md", "demo.md", "deploy.md", "switching.md"]
)
def test_a_page_from_top_to_bottom(page: str, parts: None) -> None:
    Path("story.yaml").write_text("0: a cat\n3s: a dog\n")
    lines = list(own_lines(page))
    assert lines
    for line in lines:
        run(line)


def test_the_page_on_quantization(desk: Path) -> None:
    lines = list(own_lines("quantization.md"))
    assert [line.text.split()[1] for line in lines] == ["export", "calibrate"]
    for line in lines:
        run(line)


@pytest.mark.parametrize(
    "line", list(filter(runs_here, example_lines())), ids=lambda line: line.text[:60]
)
def test_an_example_of_a_help(line: Line, parts: None) -> None:
    words = line.text.split()
    if "bundle.tar.zst" in words or "b.tar.zst" in words:
        name = next(word for word in words if word.endswith(".tar.zst"))
        assert main(["pack", "bundle", "--out", name]) == 0
    if words[1] == "unpack":
        Path("bundle").rename("elsewhere")
    if words[1] == "pull":
        assert main(["push", "bundle", "store"]) == 0
    if words[1] == "export":
        pytest.skip("README's own command is run with its files")
    run(line)
