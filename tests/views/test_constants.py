import torch

from headct.views.constants import constant


def test_a_constant_is_made_once_for_all_callers() -> None:
    cpu = torch.device("cpu")
    assert constant((1, 2.5), cpu) is constant([1, 2.5], cpu)
    assert constant((1, 2), cpu, torch.int64).dtype == torch.int64
    assert constant((1, 2), cpu).dtype == torch.float32


def test_one_made_in_inference_can_be_trained_with() -> None:
    with torch.inference_mode():
        shared = constant((3.0, 0.125), torch.device("cpu"))
    weight = torch.ones(2, requires_grad=True)
    (weight * shared).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [3.0, 0.125]
