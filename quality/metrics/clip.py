"""How well pictures fit their prompts, by a CLIP model of the user's own.

The folder is one of Hugging Face's: ``config.json``, the weights, and the tokenizer's files. What
``preprocessor_config.json`` says of sizes and colors is taken from there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from longlive_trt.errors import CheckpointError, UsageError
from longlive_trt.quality.metrics.similarity import Numbers, Pixels
from longlive_trt.reading.documents import JSON_BYTES, parse_json
from longlive_trt.reading.failures import ReadingError, refusing
from longlive_trt.reading.files import read_bytes

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"


class ClipScore:
    """A hundred times the cosine between a picture's and its prompt's embedding, not below zero."""

    def __init__(self, folder: Path) -> None:
        self._require_clip(folder)
        from transformers import AutoTokenizer, CLIPModel
        from transformers.utils import logging as loading

        quieten: Any = loading.disable_progress_bar
        quieten()
        try:
            loaded: Any = CLIPModel.from_pretrained(
                folder, local_files_only=True, weights_only=True, output_loading_info=True
            )
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(
                f"--clip {folder}: not to be opened ({reason[0][:160]}); give the whole folder of "
                f"a CLIP model"
            ) from None
        model, loading_info = loaded
        _require_weights(model, loading_info, folder)
        self._model = model.eval()
        self._size = int(model.config.vision_config.image_size)
        self._mean, self._std = _colors(folder)
        self._texts: dict[str, Any] = {}

    def __call__(self, pictures: Pixels, prompt: str) -> Numbers:
        import torch

        with torch.inference_mode():
            seen = self._model.get_image_features(pixel_values=self.prepared(pictures))
            cosine = _unit(_embedding(seen)) @ self._text(prompt).T
        return np.asarray(np.maximum(cosine[:, 0].numpy(), 0) * 100, np.float64)

    def prepared(self, pictures: Pixels) -> Any:
        """As the model's own preparation does it: shorter side, middle, colors."""
        import torch

        scaled = np.stack([self._cut(picture) for picture in pictures]).astype(np.float32) / 255
        normal = (scaled - np.float32(self._mean)) / np.float32(self._std)
        return torch.from_numpy(normal.transpose(0, 3, 1, 2).copy())

    def _cut(self, picture: Pixels) -> Pixels:
        from PIL import Image

        height, width, _ = picture.shape
        scale = self._size / min(height, width)
        size = (int(width * scale), int(height * scale))
        size = (max(size[0], self._size), max(size[1], self._size))
        resized = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - self._size) // 2, (size[1] - self._size) // 2
        return np.asarray(resized.crop((left, top, left + self._size, top + self._size)))

    def _text(self, prompt: str) -> Any:
        if prompt not in self._texts:
            most = int(self._model.config.text_config.max_position_embeddings)
            encoded = self._tokenizer(
                [prompt], truncation=True, max_length=most, return_tensors="pt"
            )
            known = {name: encoded[name] for name in ("input_ids", "attention_mask")}
            self._texts[prompt] = _unit(_embedding(self._model.get_text_features(**known)))
        return self._texts[prompt]

    @staticmethod
    def _require_clip(folder: Path) -> None:
        if not folder.is_dir():
            raise UsageError(f"--clip {folder}: no such folder; give one that holds {_CONFIG}")
        described = _read(folder / _CONFIG)
        if described.get("model_type") != "clip":
            kind = described.get("model_type", "no model that it names")
            raise CheckpointError(
                f"--clip {folder}: {_CONFIG} describes {kind}, not clip; give a CLIP model's folder"
            )


def _require_weights(model: Any, loading_info: Mapping[str, Any], folder: Path) -> None:
    """What a file lacks would be drawn at random."""
    import torch

    missing = sorted(map(str, loading_info["missing_keys"]))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"--clip {folder}: its weights lack {missing[0]}{more}; give the whole folder of a "
            "CLIP model"
        )
    if not all(torch.isfinite(tensor).all() for tensor in model.state_dict().values()):
        raise CheckpointError(f"--clip {folder}: its weights hold NaN or infinity; fetch it again")


def _embedding(features: Any) -> Any:
    """Newer versions of transformers return more than the embedding."""
    return getattr(features, "pooler_output", features)


def _unit(vectors: Any) -> Any:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _colors(folder: Path) -> tuple[Any, Any]:
    path = folder / _PREPROCESSOR
    described = _read(path) if path.is_file() else {}
    mean, std = described.get("image_mean", _MEAN), described.get("image_std", _STD)
    with refusing(CheckpointError, f"--clip {path}", "give the file that came with the model"):
        for name, values in (("image_mean", mean), ("image_std", std)):
            if not isinstance(values, list | tuple) or not _are_colors(values):
                raise ReadingError(f"{name} is no list of three numbers")
    return mean, std


def _are_colors(values: Any) -> bool:
    return len(values) == 3 and all(isinstance(v, int | float) and abs(v) < 1e3 for v in values)


def _read(path: Path) -> dict[str, Any]:
    with refusing(CheckpointError, f"--clip {path}", "give the folder of a CLIP model"):
        values = parse_json(read_bytes(path, JSON_BYTES))
        if not isinstance(values, dict):
            raise ReadingError("no keys and values")
    return values
