"""LPIPS with random weights, against torchmetrics' own network of the same weights."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from longlive_trt.errors import CheckpointError, UsageError
from longlive_trt.quality.metrics.lpips import ALEXNET, VGG16, Backbone, Lpips

_ALEX = ((3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3))
_VGG = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def _features(name: str, pretrained: bool = False) -> nn.Sequential:
    """The layers of AlexNet and VGG16, which torchvision would bring."""
    backbone, shapes = _shapes(name)
    layers: list[nn.Module] = []
    for number in range(max(backbone.convolutions) + 2 + (name == "vgg16")):
        if number in backbone.convolutions:
            wide_in, wide, side = shapes.pop(0)
            stride, padding = backbone.convolutions[number]
            layers.append(nn.Conv2d(wide_in, wide, side, stride, padding))
        elif number in backbone.pools:
            layers.append(nn.MaxPool2d(backbone.pools[number], 2))
        else:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _shapes(name: str) -> tuple[Backbone, list[tuple[int, int, int]]]:
    if name == "alexnet":
        return ALEXNET, list(_ALEX)
    return VGG16, [(a, b, 3) for a, b in zip((3, *_VGG), _VGG, strict=False)]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    library = pytest.importorskip(
        "torchmetrics.functional.image.lpips", reason="torchmetrics is not installed"
    )
    monkeypatch.setattr(library, "_get_tv_model_features", _features)

    def make(net: str) -> Any:
        torch.manual_seed(3)
        made = library._LPIPS(pretrained=False, net=net, pnet_rand=True)
        for layer in made.lins:
            # Trained ones are not negative either.
            layer.model[1].weight.data.abs_()
        return made.eval()

    return make


@pytest.fixture
def state(network: Callable[[str], Any]) -> dict[str, torch.Tensor]:
    return dict(network("alex").state_dict())


def pictures(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, 70, 90, 3), np.uint8)


@pytest.mark.parametrize("net", ["alex", pytest.param("vgg", marks=pytest.mark.exhaustive)])
def test_it_is_that_of_torchmetrics(
    network: Callable[[str], Any], net: str, tmp_path: Path
) -> None:
    reference = network(net)
    torch.save(reference.state_dict(), tmp_path / "lpips.pth")
    first, second = pictures(0), pictures(1)
    a, b = (torch.from_numpy(p).permute(0, 3, 1, 2) / 127.5 - 1 for p in (first, second))
    with torch.no_grad():
        expected = reference(a, b).flatten().numpy()
    found = Lpips(tmp_path / "lpips.pth")(first, second)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert (expected > 1e-3).all()


def test_equal_pictures_have_no_distance(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "l.safetensors")
    assert Lpips(tmp_path / "l.safetensors")(pictures(0), pictures(0)).tolist() == [0, 0]


def test_weights_that_are_not_what_they_say(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    def refused(values: Any, words: str) -> None:
        torch.save(values, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=words) as error:
            Lpips(tmp_path / "w.pth")
        assert "\n" not in str(error.value)

    refused({"a": torch.zeros(3)}, "no backbone of LPIPS")
    refused([1, 2], "no state dict, but a list")
    refused({"a": "text"}, "not tensors by name")
    refused({n: t for n, t in state.items() if "lin2" not in n}, "lin2.model.1.weight is missing")
    wide = {"lin0.model.1.weight": torch.zeros(1, 7, 1, 1)}
    refused({**state, **wide}, "a linear layer of 7 channels for a tap of 64")
    odd = {"net.slice3.6.weight": torch.zeros(384, 5, 3, 3)}
    refused({**state, **odd}, "do not follow each other")
    nan = {"lin3.model.1.weight": torch.full((1, 384, 1, 1), float("nan"))}
    refused({**state, **nan}, "lin3.model.1.weight holds NaN or infinity")


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04" + bytes(100), b"junk" * 9])
def test_files_that_are_no_weights(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="no weights that torch reads") as error:
        Lpips(tmp_path / "w.pth")
    assert not re.search(r"\(\d*\)", str(error.value)), "a reason has words"


def test_code_in_a_file_of_weights_is_not_executed(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'harm')!r}, 'w')",))

    torch.save({"a": Harm()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="no weights that torch reads"):
        Lpips(tmp_path / "w.pth")
    assert not (tmp_path / "harm").exists()


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--lpips .*gone\.pth"):
        Lpips(tmp_path / "gone.pth")
