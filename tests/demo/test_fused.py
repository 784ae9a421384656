import pytest
import torch

from longlive_trt.demo.fused import fused_norm_silu, norm_silu, plain_norm_silu


@pytest.mark.gpu
@pytest.mark.parametrize("biased", [False, True])
def test_kernels_compute_what_torch_does(biased: bool) -> None:
    pytest.importorskip("triton")
    torch.manual_seed(0)
    x = torch.randn(3, 32, 50, 70, device="cuda").contiguous(memory_format=torch.channels_last)
    given = [x, torch.rand(32, device="cuda"), torch.randn(32, device="cuda") if biased else None]
    weight = torch.randn_like(x)
    made = []
    for run in (plain_norm_silu, fused_norm_silu):
        leaves = [None if t is None else t.clone().requires_grad_() for t in given]
        result = run(*leaves)
        (result * weight).sum().backward()
        made.append([result, *(t.grad for t in leaves if t is not None)])
    for plain, fused in zip(*made, strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_channels_that_are_no_power_of_two_need_no_kernel() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    x = torch.randn(2, 40, 5, 7, device="cuda")
    gamma = torch.rand(40, device="cuda")
    torch.testing.assert_close(norm_silu(x, gamma), plain_norm_silu(x, gamma, None))
