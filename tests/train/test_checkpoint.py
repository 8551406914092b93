import pytest
import torch
from torch import nn

from headct.errors import CheckpointError, MismatchError
from headct.train.checkpoint import (
    latest_checkpoint,
    read_checkpoint,
    remove_leftovers,
    restore,
    set_damaged_aside,
)
from headct.train.loop import TrainState
from headct.train.optim import OptimConfig, make_optimizer
from headct.train.runtime import Runtime
from headct.train.saving import Checkpointer

IDENTITY = {"recipe": "abc", "store": "def"}
CPU = Runtime(torch.device("cpu"), torch.float32)


def save_checkpoint(folder, state, identity, keep):
    Checkpointer(folder, identity, 1, keep, CPU).save(state)
    return folder / f"step-{state.step:08d}"


def largest_file(checkpoint):
    return max(checkpoint.iterdir(), key=lambda path: path.stat().st_size)


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
        "step-00000100",
        "step-00001000",
    ]
    assert latest_checkpoint(tmp_path).counters["step"] == 1000


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95, 0.99])
@pytest.mark.parametrize("name", ["shard-*", "checkpoint.json"])
def test_a_truncated_one_is_found_and_the_one_before_is_used(tmp_path, capsys, share, name):
    save_checkpoint(tmp_path, new_state(steps=1), IDENTITY, keep=3)
    (newest,) = save_checkpoint(tmp_path, new_state(steps=2), IDENTITY, keep=3).glob(name)
    whole = newest.read_bytes()
    newest.write_bytes(whole[: int(share * len(whole))])
    assert latest_checkpoint(tmp_path).counters["step"] == 1
    assert "step-00000002 is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(("next_step", "keep"), [(2, 1), (4, 2)])
def test_damaged_ones_do_not_count_among_those_that_are_kept(tmp_path, next_step, keep):
    save_checkpoint(tmp_path, new_state(steps=1), IDENTITY, keep=3)
    largest_file(save_checkpoint(tmp_path, new_state(steps=3), IDENTITY, keep=3)).unlink()
    for _ in range(2):  # a name that was used before
        used = latest_checkpoint(tmp_path)
        assert used.counters["step"] == 1
        assert set_damaged_aside(tmp_path, used) == ["step-00000003"]
        (tmp_path / "step-00000003").mkdir()
    (tmp_path / "step-00000003").rmdir()
    save_checkpoint(tmp_path, new_state(steps=next_step), IDENTITY, keep=keep)
    kept = [f"step-0000000{step}" for step in (1, next_step)][-keep:]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged-step-00000003", *kept]
    assert latest_checkpoint(tmp_path).counters["step"] == next_step


def test_the_old_one_goes_when_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, new_state(steps=1), IDENTITY, keep=1)

    def lost(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("headct.train.saving.flush_folder", lost)
    with pytest.raises(CheckpointError, match="could not be written"):
        save_checkpoint(tmp_path, new_state(steps=2), IDENTITY, keep=1)
    assert read_checkpoint(tmp_path / "step-00000001").counters["step"] == 1


def test_a_missing_file_is_found(tmp_path):
    path = save_checkpoint(tmp_path, new_state(steps=1), IDENTITY, keep=3)
    largest_file(path).unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_a_flipped_bit_is_found(tmp_path):
    path = save_checkpoint(tmp_path, new_state(steps=1), IDENTITY, keep=3)
    file = largest_file(path)
    damaged = bytearray(file.read_bytes())
    damaged[-7] ^= 4
    file.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=f"damaged: {file.name}"):
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


def test_nothing_is_pickled_and_files_of_others_are_refused(tmp_path):
    path = save_checkpoint(tmp_path, new_state(steps=1), IDENTITY, keep=3)
    assert sorted(file.suffix for file in path.iterdir()) == [".json", ".safetensors"]
    (path / "checkpoint.json").write_text('{"format": "another"}')
    with pytest.raises(CheckpointError, match="not a headct-checkpoint"):
        read_checkpoint(path)
    torch.save({"a": torch.zeros(1)}, path / "checkpoint.json")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_a_full_disk_is_an_error_and_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, new_state(), IDENTITY, keep=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("headct.train.saving.write_json", full)
    with pytest.raises(CheckpointError, match=r"could not be written: .*No space"):
        save_checkpoint(tmp_path, new_state(steps=1), IDENTITY, keep=1)
    assert latest_checkpoint(tmp_path).counters["step"] == 0


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / ".step-00000001.tmp").mkdir()
    (tmp_path / ".step-00000001.tmp" / "shard").touch()
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_saved_is_the_state_of_its_step_though_training_goes_on(tmp_path):
    state = new_state(steps=1)
    before = {name: t.clone() for name, t in state.module.state_dict().items()}
    with Checkpointer(tmp_path, IDENTITY, 1, 1, CPU) as checkpointer:
        checkpointer.start(state)
        with torch.no_grad():
            for parameter in state.module.parameters():
                parameter.fill_(7)
    fresh = new_state()
    restore(fresh, latest_checkpoint(tmp_path), IDENTITY)
    for name, value in fresh.module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_hook_saves_every_so_many_steps_and_once(tmp_path):
    state = new_state()
    with Checkpointer(tmp_path, IDENTITY, 4, 9, CPU) as hook:
        for state.step in range(1, 10):
            hook(state, type("Record", (), {"step": state.step}))
        hook.save(state)
    assert [int(p.stem[5:]) for p in sorted(tmp_path.iterdir())] == [4, 8, 9]
