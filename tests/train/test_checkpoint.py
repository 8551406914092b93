import pytest
import torch
from torch import nn

from headct.errors import CheckpointError, MismatchError
from headct.train.checkpoint import (
    Checkpointer,
    latest_checkpoint,
    read_checkpoint,
    remove_leftovers,
    restore,
    save_checkpoint,
)
from headct.train.loop import TrainState
from headct.train.optim import OptimConfig, make_optimizer
from headct.train.runtime import Runtime

IDENTITY = {"recipe": "abc", "store": "def"}


def new_state(width: int = 5, steps: int = 0) -> TrainState:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    state = TrainState(module, make_optimizer(module, OptimConfig()))
    for _ in range(steps):
        state.module(torch.rand(8, 3)).square().mean().backward()
        state.optimizer.step()
        state.step += 1
        state.seen_scans += 8
    return state


def test_a_round_trip_is_bitwise(tmp_path):
    state, fresh = new_state(steps=3), new_state()
    restore(fresh, read_checkpoint(save_checkpoint(tmp_path, state, IDENTITY, keep=2)), IDENTITY)
    assert (fresh.step, fresh.seen_scans) == (3, 24)
    for name, value in state.module.state_dict().items():
        assert torch.equal(value, fresh.module.state_dict()[name]), name
    for old, new in zip(state.module.parameters(), fresh.module.parameters(), strict=True):
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(state.optimizer.state[old][key], fresh.optimizer.state[new][key])


def test_the_last_n_are_kept(tmp_path):
    state = new_state()
    for state.step in (5, 20, 100, 1000):
        save_checkpoint(tmp_path, state, IDENTITY, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000100.safetensors",
        "step-00001000.safetensors",
    ]
    assert latest_checkpoint(tmp_path).counters["step"] == 1000


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95, 0.9999])
def test_a_truncated_one_is_found_and_the_one_before_is_used(tmp_path, capsys, share):
    save_checkpoint(tmp_path, new_state(steps=1), IDENTITY, keep=3)
    newest = save_checkpoint(tmp_path, new_state(steps=2), IDENTITY, keep=3)
    whole = newest.read_bytes()
    newest.write_bytes(whole[: int(share * len(whole))])
    assert latest_checkpoint(tmp_path).counters["step"] == 1
    assert "step-00000002.safetensors is damaged; trying the one before" in capsys.readouterr().err


def test_a_flipped_bit_is_found(tmp_path):
    path = save_checkpoint(tmp_path, new_state(steps=1), IDENTITY, keep=3)
    damaged = bytearray(path.read_bytes())
    damaged[-7] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="altered"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints is whole"):
        latest_checkpoint(tmp_path)
    assert latest_checkpoint(tmp_path / "nothing yet") is None


def test_another_architecture_is_an_error_with_its_keys(tmp_path):
    path = save_checkpoint(tmp_path, new_state(5), IDENTITY, keep=1)
    with pytest.raises(CheckpointError, match=r"0\.weight"):
        restore(new_state(6), read_checkpoint(path), IDENTITY)


def test_another_recipe_or_store_is_an_error(tmp_path):
    checkpoint = read_checkpoint(save_checkpoint(tmp_path, new_state(), IDENTITY, keep=1))
    with pytest.raises(MismatchError, match="another store"):
        restore(new_state(), checkpoint, IDENTITY | {"store": "xyz"})


def test_files_of_others_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "step-00000001.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a headct-checkpoint"):
        read_checkpoint(path)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, new_state(), IDENTITY, keep=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("headct.train.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, new_state(steps=1), IDENTITY, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000000.safetensors"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / ".step-00000001.safetensors.0a1b2c3d.tmp").touch()
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_hook_saves_every_so_many_steps_and_once(tmp_path):
    state = new_state()
    runtime = Runtime(torch.device("cpu"), torch.float32)
    hook = Checkpointer(tmp_path, IDENTITY, 4, 9, runtime)
    for state.step in range(1, 10):
        hook(state, type("Record", (), {"step": state.step}))
    hook.save(state)
    assert [int(p.stem[5:]) for p in sorted(tmp_path.iterdir())] == [4, 8, 9]
    second = Checkpointer(
        tmp_path, IDENTITY, 4, 9, Runtime(torch.device("cpu"), torch.float32, rank=1)
    )
    state.step = 12
    second.save(state)
    assert len(list(tmp_path.iterdir())) == 3
