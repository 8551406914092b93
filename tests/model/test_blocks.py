"""Parts of a block whose way of computing depends on where it runs."""

import pytest
import torch
import torch.nn.functional as F

from headct.model.blocks import gelu_after


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: there GELU is a step of its own")
def test_gelu_of_a_gpu_that_learns_nothing_is_gelu_to_bf16s_rounding():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 128).cuda()
    x = 3 * torch.randn(2, 500, 64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        learned = gelu_after(linear, x)
        with torch.no_grad():
            found = gelu_after(linear, x)
    assert found.dtype == learned.dtype == torch.bfloat16
    exact = F.gelu(linear(x))
    assert (found - exact).abs().max() < 0.06  # bf16 rounds 8 by 0.03
    assert (found - exact).abs().mean() < 1.2 * (learned - exact).abs().mean()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: there every layer is called")
def test_a_layer_that_does_more_than_a_product_is_called():
    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    torch.manual_seed(0)
    linear, x = Doubled(64, 128).cuda(), torch.randn(2, 5, 64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(gelu_after(linear, x), F.gelu(linear(x)))
