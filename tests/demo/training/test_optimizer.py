import torch
from torch import nn

from longlive_trt.demo.training.optimizer import MuonAdam, orthogonalized


def descend(model: nn.Module, optimizer: MuonAdam, steps: int) -> float:
    torch.manual_seed(1)
    x, y = torch.randn(64, 8), torch.randn(64, 4)
    for _ in range(steps):
        optimizer.flat.gradients.zero_()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def net_and_optimizer() -> tuple[nn.Module, MuonAdam]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4))
    return model, MuonAdam(model, lambda name, p: p.dim() == 2, 0.02, 0.01)


def test_orthogonalizes_either_shape() -> None:
    torch.manual_seed(0)
    for shape in ((2, 6, 20), (2, 20, 6)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
        assert ((values > 0.5) & (values < 1.4)).all()


def test_learns() -> None:
    model, optimizer = net_and_optimizer()
    first = descend(model, optimizer, 1)
    assert descend(model, optimizer, 150) < 0.5 * first


def test_goes_on_from_its_state() -> None:
    model, optimizer = net_and_optimizer()
    descend(model, optimizer, 20)
    again, resumed = net_and_optimizer()
    resumed.load(optimizer.state())
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert descend(again, resumed, 5) < descend(*net_and_optimizer(), 5)


def test_a_gradient_that_is_not_finite_moves_nothing_far() -> None:
    model, optimizer = net_and_optimizer()
    descend(model, optimizer, 5)
    before = optimizer.flat.values.clone()
    optimizer.flat.gradients.fill_(float("nan"))
    optimizer.step()
    assert optimizer.flat.values.isfinite().all()
    assert (optimizer.flat.values - before).abs().max() < 0.05


def test_the_average_can_be_swapped_in_and_out() -> None:
    model, optimizer = net_and_optimizer()
    descend(model, optimizer, 10)
    trained = optimizer.flat.values.clone()
    optimizer.swap_average()
    assert not torch.equal(optimizer.flat.values, trained)
    optimizer.swap_average()
    assert torch.equal(optimizer.flat.values, trained)
