"""CLIP with random weights, against transformers' own preparation and model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from longlive_trt.errors import CheckpointError, UsageError
from longlive_trt.quality.metrics.clip import ClipScore

PROMPTS = ("a cat", "a dog in rain")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of a few thousand weights, as its owner would keep it."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    known = ["<s>", "</s>", "<unk>", "a", "cat", "dog", "in", "rain"]
    words = {word: number for number, word in enumerate(known)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=known[2]))
    tokenizer.pre_tokenizer = Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=known[1], unk_token=known[2], model_max_length=16
    )
    sizes = {"hidden_size": 32, "intermediate_size": 48}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    text = {**sizes, **ends, "vocab_size": len(words), "max_position_embeddings": 16}
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(0)
    path: Path = tmp_path_factory.mktemp("clip")
    transformers.CLIPModel(config).save_pretrained(path)
    wrapped.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]})
    )
    return path


def pictures() -> np.ndarray:
    y, x = np.mgrid[:50, :90]
    base = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], -1) * 100 + 128
    return np.stack([base, base[::-1]]).astype(np.uint8)


def test_it_is_that_of_transformers(folder: Path) -> None:
    import transformers

    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32},
        image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25],
    )  # fmt: skip
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prepared = processor(list(pictures()), return_tensors="pt")
    score = ClipScore(folder)
    assert torch.allclose(score.prepared(pictures()), prepared["pixel_values"], atol=1e-5)
    for prompt in PROMPTS:
        ids = tokenizer([prompt], return_tensors="pt")
        with torch.no_grad():
            logits = model(
                **prepared, input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]
            ).logits_per_image
        scale = float(model.logit_scale.detach().exp())
        expected = (logits[:, 0] / scale).clamp_min(0) * 100
        assert score(pictures(), prompt) == pytest.approx(expected.numpy(), abs=1e-4)


def test_a_folder_that_is_not_what_it_says(folder: Path, tmp_path: Path) -> None:
    def refused(words: str) -> None:
        with pytest.raises(CheckpointError, match=words) as error:
            ClipScore(tmp_path / "clip")
        assert "\n" not in str(error.value)

    (tmp_path / "clip").mkdir()
    refused("config.json: cannot be read")
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "bert"}')
    refused("describes bert, not clip")
    shutil.copytree(folder, tmp_path / "clip", dirs_exist_ok=True)
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"x" * 100)
    refused("not to be opened")
    shutil.copytree(folder, tmp_path / "clip", dirs_exist_ok=True)
    (tmp_path / "clip" / "preprocessor_config.json").write_text('{"image_mean": [1]}')
    refused("image_mean is no list of three numbers")


def test_weights_that_are_not_whole(folder: Path, tmp_path: Path) -> None:
    """The library would draw what is missing at random, and say so in a warning."""
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    tensors = load_file(folder / "model.safetensors")

    def refused(changed: dict[str, torch.Tensor], words: str) -> None:
        save_file(changed, broken / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=words) as error:
            ClipScore(broken)
        assert str(broken) in str(error.value) and "\n" not in str(error.value)

    refused({n: t for n, t in tensors.items() if "projection" not in n}, "lack .* and 1 more; give")
    refused({"other": torch.zeros(3)}, "its weights lack .* more; give the whole folder")
    name = "text_projection.weight"
    refused({**tensors, name: torch.zeros(5, 5)}, "not to be opened|lack")
    refused({**tensors, name: tensors[name] * float("nan")}, "NaN or infinity")


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--clip .*gone: no such folder"):
        ClipScore(tmp_path / "gone")
