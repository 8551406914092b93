"""Windows of the input while training."""

from __future__ import annotations

import pytest
import torch

from headct.config import check
from headct.errors import UsageError
from headct.model.tokens import InputWindows, window_tensors
from headct.objective.config import JointConfig
from headct.objective.windows import WindowContrast, draw_windows
from headct.volume.window import WINDOWS

from .test_joint import DECODER, HEAD, OFF, made, views

CPU = torch.device("cpu")


def test_jitter_stays_in_its_range_and_without_any_windows_are_those_of_the_config() -> None:
    drawn = draw_windows(WINDOWS, (0.05, 0.1), WindowContrast(), 200, CPU)
    level, width = window_tensors(WINDOWS, CPU)
    assert ((drawn.level_hu - level).abs() <= 0.05 * width + 1e-3).all()
    assert ((drawn.width_hu / width).log().abs() <= 0.1 + 1e-6).all()
    assert (drawn.width_hu / width).log().abs().max() > 0.09
    still = draw_windows(WINDOWS, (0.0, 0.0), WindowContrast(), 2, CPU)
    torch.testing.assert_close(still.level_hu, level.expand(2, -1).float())
    torch.testing.assert_close(still.width_hu, width.expand(2, -1).float())
    assert still.gamma is None


def test_contrast_is_a_power_of_the_share_of_the_window() -> None:
    level, width = torch.tensor([40.0]), torch.tensor([80.0])
    hu = torch.tensor([-50.0, 0.0, 20.0, 40.0, 80.0, 500.0]).expand(2, 1, -1)
    channels = InputWindows(level, width, torch.tensor([0.5, 1.0])).channels(hu.clone())
    for scan, gamma in enumerate((0.5, 1.0)):
        for voxel, value in enumerate(hu[scan, 0].tolist()):
            share = min(max(value / 80, 0), 1) ** gamma
            assert channels[scan, 0, 0, voxel].item() == pytest.approx(2 * share - 1, abs=1e-6)


def test_contrast_is_drawn_for_a_share_of_the_views() -> None:
    torch.manual_seed(0)
    power = WindowContrast(probability=0.5).draw(2000, CPU)
    changed = power < 1
    assert changed.float().mean() == pytest.approx(0.5, abs=0.05)
    assert power.min() >= 0.2
    with pytest.raises(UsageError, match="smallest <= largest"):
        check({"gamma": (0.9, 0.2)}, WindowContrast, "recipe")


@pytest.mark.parametrize("jitter_teacher", [False, True])
def test_the_teacher_has_the_windows_of_the_student_where_asked(jitter_teacher: bool) -> None:
    terms = OFF | {"cls": OFF["cls"].model_copy(update={"weight": 1.0, **HEAD})}
    config = JointConfig(
        decoder=DECODER,
        **terms,
        window_contrast=WindowContrast(probability=1.0),
        jitter_teacher=jitter_teacher,
    )
    objective = made(config).train()
    batch = views(n_masked=0)
    seen: list[torch.Tensor] = []
    for encoder in (objective.student, objective.teacher):
        encoder.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    objective.losses(batch, 0.5)
    student, teacher, _ = seen
    assert torch.equal(student, teacher) is jitter_teacher
