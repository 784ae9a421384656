"""What the kernel tests share: a GPU by capability, random inputs, float64 results."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.arguments import KVPiece
from longlive_trt.plugins.cuda import driver
from longlive_trt.plugins.cuda.compilation import CACHE_ENVIRONMENT

try:
    import torch
except ImportError:  # the tests that need it say so themselves
    torch = None

Piece = tuple[int, int]  # valid tokens, capacity


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for the whole run, and none of it in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_ENVIRONMENT, str(tmp_path_factory.mktemp("kernels")))
        yield


@pytest.fixture(scope="session")
def need_gpu() -> Callable[[tuple[int, int]], driver.DeviceFacts]:
    def need(capability: tuple[int, int], exactly: bool = False) -> driver.DeviceFacts:
        try:
            facts = driver.device_facts(0)
        except PluginError as error:
            pytest.skip(str(error))
        if facts.capability < capability or (exactly and facts.capability != capability):
            pytest.skip(f"needs compute capability {capability}, found {facts.capability}")
        if not torch.cuda.is_available():
            pytest.skip("this torch was built without CUDA")
        return facts

    return need


@dataclass
class Problem:
    """Inputs whose invalid parts are NaN, an output that is NaN, and the results to expect."""

    q: Any
    pieces: list[KVPiece]
    out: Any
    expected: Any
    same_precision: Any  # torch's own attention in the inputs' dtype

    def to(self, k: Any, v: Any) -> "Problem":
        """The same call, with what all of these keys and values give as the results to expect."""
        expected = exact_attention(self.q, k, v, self.q.shape[-1] ** -0.5)
        return replace(self, expected=expected, same_precision=torch_attention(self.q, k, v))

    def error(self) -> float:
        return relative(self.out, self.expected)

    def reference_error(self) -> float:
        return relative(self.same_precision, self.expected)


def relative(actual: Any, expected: Any) -> float:
    difference = (actual.double() - expected).norm()
    return float(difference / expected.norm())


def random_normal(shape: Sequence[int], dtype: str, seed: int) -> Any:
    generator = torch.Generator(device="cuda").manual_seed(seed)
    values = torch.randn(*shape, generator=generator, device="cuda")
    return values.to(getattr(torch, dtype))


def device_length(tokens: int) -> Any:
    return torch.tensor([tokens], dtype=torch.int64, device="cuda")


def exact_attention(q: Any, k: Any, v: Any, scale: float) -> Any:
    heads = [x.double().transpose(1, 2) for x in (q, k, v)]
    weights = torch.softmax(heads[0] @ heads[1].transpose(-1, -2) * scale, dim=-1)
    return (weights @ heads[2]).transpose(1, 2)


def torch_attention(q: Any, k: Any, v: Any) -> Any:
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def make_problem(
    batch: int,
    tokens: int,
    heads: int,
    pieces: Sequence[Piece],
    *,
    dtype: str = "bfloat16",
    head_dim: int = 128,
    seed: int = 0,
) -> Problem:
    q = random_normal((batch, tokens, heads, head_dim), dtype, seed)
    made, keys, values = [], [], []
    for index, (valid, capacity) in enumerate(pieces):
        shape = (batch, capacity, heads, head_dim)
        k = random_normal(shape, dtype, seed + 10 * index + 1)
        v = random_normal(shape, dtype, seed + 10 * index + 2)
        k[:, valid:] = float("nan")
        v[:, valid:] = float("nan")
        made.append(KVPiece(k, v, device_length(valid)))
        keys.append(k[:, :valid])
        values.append(v[:, :valid])
    k, v = torch.cat(keys, 1), torch.cat(values, 1)
    out = torch.full_like(q, float("nan"))
    return Problem(q, made, out, None, None).to(k, v)
