from itertools import count

import pytest
import torch
from torch import nn

from headct.errors import TrainingError
from headct.train.loop import LoopConfig, TrainState, fit
from headct.train.optim import OptimConfig, make_optimizer
from headct.train.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)
CONFIG = LoopConfig(steps=6, seed=3, clip_norm=1.0)


def new_state() -> TrainState:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    return TrainState(module, make_optimizer(module, OptimConfig(lr=0.1)))


def batches(first: int = 0, accumulate: int = 1):
    for step in count(first):
        for micro in range(accumulate):
            rng = torch.Generator().manual_seed(100 * step + micro)
            yield torch.rand(4, 3, generator=rng)


def run(state: TrainState, config: LoopConfig = CONFIG, **changes):
    def losses(batch, step):
        error = (state.module(batch) - 1 + 0.1 * torch.rand(4, 1)).square().mean()
        return {"loss": error, "double": 2 * error}

    values = {
        "batches": batches(state.step, config.accumulate),
        "losses": losses,
        "schedule": OptimConfig(lr=0.1).schedule(6),
    }
    fit(state, config=config, runtime=CPU, **(values | changes))


def test_it_learns_and_counts():
    state, records = new_state(), []
    run(state, hooks=[lambda _, record: records.append(record)])
    assert all(0 < record.waited_s < record.seconds for record in records)
    assert (state.step, state.seen_scans, state.skipped_steps) == (6, 24, 0)
    assert records[-1].terms["loss"] < records[0].terms["loss"]
    assert [r.step for r in records] == [1, 2, 3, 4, 5, 6]
    assert records[2].terms["double"] == pytest.approx(2 * records[2].terms["loss"])
    assert records[0].scheduled["momentum"] == 0.95


def test_stopped_and_gone_on_equals_uninterrupted():
    whole, parts = new_state(), new_state()
    run(whole)
    run(parts, stop=lambda: parts.step == 1)  # asked in the second step
    assert parts.step == 2
    torch.rand(5)  # other use of the global generator between the two halves
    run(parts)
    assert torch.equal(whole.module.weight, parts.module.weight)


def test_accumulated_micro_batches_are_one_batch():
    def losses_of(state):
        return lambda batch, step: {"loss": (state.module(batch) - 1).square().mean()}

    split, whole = new_state(), new_state()
    run(
        split,
        LoopConfig(6, 3, 1.0, accumulate=2),
        losses=losses_of(split),
        batches=batches(accumulate=2),
    )
    halves = batches(accumulate=2)
    joined = (torch.cat([next(halves), next(halves)]) for _ in count())
    run(whole, losses=losses_of(whole), batches=joined)
    torch.testing.assert_close(split.module.weight, whole.module.weight)
    assert split.seen_scans == whole.seen_scans == 48


def poisoned(state: TrainState, at: set[int]):
    def losses(batch, step):
        loss = (state.module(batch) - 1).square().mean()
        return {"loss": loss * (float("nan") if step in at else 1.0)}

    return losses


def test_a_step_that_is_not_finite_is_not_applied():
    state, weights, told = new_state(), [], []

    def note(state, record):
        weights.append(state.module.weight.detach().clone())
        told.append((record.applied, len(record.batches)))

    run(state, losses=poisoned(state, {3}), hooks=[note])
    assert torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[3], weights[4])
    assert told == [(True, 1)] * 3 + [(False, 1)] + [(True, 1)] * 2
    assert (state.step, state.skipped_steps, state.skipped_in_a_row) == (6, 1, 0)


def test_the_teacher_is_left_alone_in_a_skipped_step():
    state, moved = new_state(), []
    run(state, losses=poisoned(state, {1, 2}), after_step=lambda now: moved.append(now["momentum"]))
    assert len(moved) == 4


def test_too_many_in_a_row_stop_the_run():
    state = new_state()
    with pytest.raises(TrainingError, match="2 times in a row"):
        run(state, LoopConfig(6, 3, 1.0, max_skipped_in_a_row=2), losses=poisoned(state, {1, 3, 4}))
    assert state.step == 5


def test_gradients_are_clipped():
    state, norms = new_state(), []
    before = state.module.weight.detach().clone()
    state.optimizer = torch.optim.SGD(
        [{"params": list(state.module.parameters()), "lr_scale": 1.0, "decayed": False}], lr=1.0
    )
    run(
        state,
        LoopConfig(1, 3, clip_norm=0.5),
        losses=lambda batch, step: {"loss": 1000 * state.module(batch).mean()},
        schedule=lambda step: {"lr": 1.0, "weight_decay": 0.0},
        hooks=[lambda _, record: norms.append(record.gradient_norm)],
    )
    moved = torch.cat([(state.module.weight - before).flatten(), state.module.bias * 0])
    assert norms[0] > 1000
    assert moved.norm() <= 0.5
