"""Muon for matrices and AdamW for the rest, on flat buffers, so that a step can be captured."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPS = 1e-8
_BUFFERS = ("average", "momenta", "squares", "steps", "usual")


class Flat:
    """All of a model's parameters, and their gradients, as views of one tensor each."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.values = torch.cat([p.detach().flatten() for p in parameters])
        self.gradients = torch.zeros_like(self.values)
        at = 0
        for p in parameters:
            span = slice(at, at + p.numel())
            p.data = self.values[span].view(p.shape)
            p.grad = self.gradients[span].view(p.shape)
            at += p.numel()


def orthogonalized(matrices: Tensor) -> Tensor:
    """[n, rows, columns] with singular values moved near 1, by Newton and Schulz's iteration."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.to(torch.bfloat16 if x.is_cuda else x.dtype)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    made: Tensor = x.mT if tall else x
    return made.float()


class MuonAdam:
    """``takes_muon`` picks the parameters whose steps are orthogonalized, by name and tensor."""

    def __init__(
        self, model: nn.Module, takes_muon: Callable[[str, Tensor], bool],
        muon_rate: float, adam_rate: float, momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98), decay: float = 0.0, average: float = 0.999,
    ) -> None:  # fmt: skip
        named = list(model.named_parameters())
        plain = [p for name, p in named if not takes_muon(name, p)]
        matrices = [p for name, p in named if takes_muon(name, p)]
        self.flat = Flat([*plain, *matrices])
        values = self.flat.values
        self._plain = sum(p.numel() for p in plain)
        self._rates = (muon_rate, adam_rate)
        self._momentum, self._betas, self._decay, self._average = momentum, betas, decay, average
        self.momenta = torch.zeros_like(values)
        self.squares = values.new_zeros(self._plain)
        self.average = values.clone()
        self.steps = values.new_zeros(())
        self.factor = values.new_ones(())
        self.usual = values.new_zeros(())
        self._groups = self._by_shape(matrices)

    def _by_shape(self, matrices: list[nn.Parameter]) -> dict[tuple[int, int], list[slice]]:
        groups: dict[tuple[int, int], list[slice]] = {}
        at = self._plain
        for p in matrices:
            rows, columns = p.shape[0], p.numel() // p.shape[0]
            groups.setdefault((rows, columns), []).append(slice(at, at + p.numel()))
            at += p.numel()
        return groups

    @torch.no_grad()
    def step(self) -> None:
        """One step from the gradients; every number that changes between steps is a tensor."""
        values, gradients, plain = self.flat.values, self.flat.gradients, self._plain
        muon_rate, adam_rate = self._rates
        self.steps += 1
        self._tame(gradients)
        if self._decay:
            values *= 1 - self.factor * self._decay * adam_rate
        first, second = self._betas
        mean, gradient = self.momenta[:plain], gradients[:plain]
        mean.lerp_(gradient, 1 - first)
        self.squares.lerp_(gradient.square(), 1 - second)
        scale = (self.squares / (1 - second**self.steps)).sqrt_().add_(_EPS)
        values[:plain] -= self.factor * adam_rate * (mean / (1 - first**self.steps)) / scale
        momenta, gradient = self.momenta[plain:], gradients[plain:]
        momenta.lerp_(gradient, 1 - self._momentum)
        ahead = gradient.lerp(momenta, self._momentum)
        for (rows, columns), spans in self._groups.items():
            parts = [ahead[s.start - plain : s.stop - plain] for s in spans]
            update = orthogonalized(torch.stack(parts).view(-1, rows, columns))
            update *= self.factor * muon_rate * max(1.0, rows / columns) ** 0.5
            for span, part in zip(spans, update.flatten(1).unbind(), strict=True):
                values[span] -= part
        keep = torch.minimum((1 + self.steps) / (10 + self.steps), self.steps * 0 + self._average)
        self.average.lerp_(values, 1 - keep)

    def _tame(self, gradients: Tensor) -> None:
        """Drop a gradient that is not finite, and shorten one far longer than usual."""
        length = gradients.norm()
        finite = torch.isfinite(length)
        gradients.nan_to_num_(0.0, 0.0, 0.0)
        usual = torch.where(self.usual > 0, self.usual, length.nan_to_num(1.0, 1.0, 1.0))
        share = torch.where(finite, (3 * usual / (length + 1e-12)).clamp_max(1.0), 0.0)
        gradients *= share.nan_to_num(0.0)
        kept = torch.where(finite, torch.minimum(length, 3 * usual), usual)
        self.usual.copy_(torch.lerp(usual, kept, 0.02))

    def swap_average(self) -> None:
        """Exchange the values and their running average, for a look at the latter."""
        held = self.flat.values.clone()
        self.flat.values.copy_(self.average)
        self.average.copy_(held)

    def copied(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in _BUFFERS} | {
            "values": self.flat.values.clone()
        }

    def restore(self, copied: dict[str, Tensor]) -> None:
        self.flat.values.copy_(copied["values"])
        for name in _BUFFERS:
            getattr(self, name).copy_(copied[name])

    def state(self) -> dict[str, Tensor]:
        """In half the bits; Muon's momentum, which twenty steps bring back, is left out."""
        plain = slice(self._plain)
        return {
            "values": self.flat.values.half(),
            "average": self.average.half(),
            "momenta": self.momenta[plain].bfloat16(),
            "squares": self.squares.bfloat16(),
            "steps": self.steps,
            "usual": self.usual,
        }

    def load(self, state: dict[str, Tensor]) -> None:
        # A slim state has the average alone.
        self.flat.values.copy_(state.get("values", state["average"]))
        self.momenta.zero_()
        self.momenta[: self._plain].copy_(state["momenta"])
        for name in ("average", "squares", "steps", "usual"):
            getattr(self, name).copy_(state[name])
