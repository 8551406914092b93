"""Encoders of other authors: their input is theirs, their weights are read strictly, never run."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from headct.adapt.features import read_features
from headct.adapt.foreign import ENCODERS, load_foreign
from headct.adapt.merlin import MerlinTrunk
from headct.cli.app import app
from headct.errors import CheckpointError
from headct.model.weights import read_weights, strip_prefix
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import Preprocessing

pytest.importorskip("monai", reason="CT-FM is MONAI's SegResNet")

SHAPE, MM = (16, 24, 20), (6.0, 4.0, 4.0)


def head():
    """Brain in air; a bone at the vertex, front and right: high z, y and x."""
    hu = np.full(SHAPE, -1024, np.int16)
    hu[2:14, 3:21, 4:18] = 35
    hu[11:14, 17:21, 14:18] = 1500
    return hu


def test_ct_fm_sees_s_p_l_at_3_1_1_mm_cropped_to_the_head():
    x = ENCODERS["ct-fm"].prepare(head(), MM)
    assert x.shape[0] == 1
    np.testing.assert_allclose(x.shape[1:], (12 * 2, 18 * 4, 14 * 4), atol=4)
    where = np.argwhere(x[0] > 0.8).mean(axis=0) / x.shape[1:]
    assert where[0] > 0.7, "S: up"
    assert (where[1:] < 0.3).all(), "P and L: the front and the right come first"
    assert x[0, 10, 30, 30] == pytest.approx((35 + 1024) / 3072, abs=1e-6)


def test_merlin_sees_r_a_s_at_3_and_1_5_mm_in_its_box_slices_first():
    x = ENCODERS["merlin"].prepare(head(), MM)
    assert x.shape == (3, 160, 224, 224)
    assert (x[0] == x[1]).all()
    assert (x[0] == x[2]).all()
    z, right, front = np.argwhere(x[0] > 0.9).mean(axis=0)
    middle = np.array([160, 224, 224]) / 2
    # the bone of `head`, mm from the middle of its grid
    expected = np.array([12 - 7.5, 15.5 - 9.5, 18.5 - 11.5]) * (6.0, 4.0, 4.0)
    np.testing.assert_allclose(
        ([z, right, front] - middle + 0.5) * (3, 1.5, 1.5), expected, atol=1.5
    )
    assert x[0, 80, 112, 112] == pytest.approx(1035 / 2000, abs=1e-6)


def test_air_alone_still_has_a_shape():
    air = np.full(SHAPE, -1024, np.int16)
    assert np.isfinite(ENCODERS["ct-fm"].prepare(air, MM)).all()
    assert ENCODERS["merlin"].prepare(air, MM).max() == 0


def test_the_names_of_merlins_weights_are_those_of_a_resnet_152():
    with torch.device("meta"):
        names = MerlinTrunk().state_dict()
    assert sum(name.endswith("conv2.weight") for name in names) == 3 + 8 + 36 + 3
    assert names["conv1.weight"].shape == (64, 3, 3, 7, 7)
    assert names["layer3.35.conv2.weight"].shape == (256, 256, 3, 3, 3)
    assert names["layer4.0.downsample.0.weight"].shape == (2048, 1024, 1, 1, 1)
    with torch.device("meta"):
        assert MerlinTrunk()(torch.empty(1, 3, 160, 224, 224)).shape == (1, 2048)


def test_merlin_from_a_checkpoint_of_the_whole_model(tmp_path):
    """Image encoder under `encode_image.i3_resnet.`, its heads and a text encoder beside it."""
    torch.manual_seed(1)
    trunk = MerlinTrunk()
    weights = {f"encode_image.i3_resnet.{k}": v for k, v in trunk.state_dict().items()}
    weights["encode_image.i3_resnet.contrastive_head.weight"] = torch.ones(2)
    weights["encode_image.i3_resnet.classifier.bias"] = torch.ones(2)
    weights["encode_text.text_encoder.embeddings.weight"] = torch.ones(3)
    torch.save(weights, tmp_path / "merlin.pt")
    loaded = load_foreign("merlin", tmp_path / "merlin.pt")
    x = torch.rand(1, 3, 16, 32, 32)
    torch.testing.assert_close(loaded.network(x), trunk.eval()(x))
    assert loaded.source == "merlin"
    last = weights["encode_image.i3_resnet.layer4.2.conv3.weight"]
    last[0, 0] = torch.nan
    torch.save(weights, tmp_path / "diverged.pt")
    with pytest.raises(CheckpointError, match=r"first in layer4\.2\.conv3\.weight"):
        load_foreign("merlin", tmp_path / "diverged.pt")
    del weights["encode_image.i3_resnet.layer4.2.conv3.weight"]
    torch.save(weights, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match=r"missing layer4\.2\.conv3\.weight"):
        load_foreign("merlin", tmp_path / "part.pt")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign") / "store"
    with StoreWriter(path, Preprocessing(shape_zyx=SHAPE, spacing_mm_zyx=MM)) as writer:
        for i in range(2):
            row = {"scan_id": f"c-{i}", "patient_id": f"p-{i}", "study_id": f"s-{i}"}
            row |= {"series_id": f"e-{i}", "status": "accepted", "affine_zyx": np.eye(4)}
            writer.append(head() + np.int16(i), row)
    return path


def test_ct_fm_features_of_a_store_from_the_command_line(store, tmp_path):
    from monai.networks.nets.segresnet_ds import SegResEncoder

    torch.manual_seed(3)
    net = SegResEncoder(3, init_filters=32, in_channels=1, blocks_down=(1, 2, 2, 4, 4))
    save_file({f"encoder.{k}": v for k, v in net.state_dict().items()}, tmp_path / "m.safetensors")
    arguments = ["embed", store, "--encoder", "ct-fm", "--weights", tmp_path / "m.safetensors"]
    out = tmp_path / "f.parquet"
    answer = CliRunner().invoke(app, [*map(str, arguments), "--out", str(out)])
    assert answer.exit_code == 0, answer.output
    table = read_features(out)
    assert (table.source, len(table)) == ("ct-fm", 2)
    x = torch.from_numpy(ENCODERS["ct-fm"].prepare(head(), MM))
    with torch.inference_mode():
        expected = net.eval()(x[None])[-1].mean((2, 3, 4))[0]
    np.testing.assert_allclose(table.vectors["pooled"][0], expected, rtol=1e-4, atol=1e-5)
    untrained = load_foreign("ct-fm", None, 0)
    assert (untrained.source, untrained.hash != table.bundle_hash) == ("random-ct-fm", True)


def test_prefixes_of_wrappers_come_off_and_other_parts_are_left_out():
    weights = {f"module.net.{k}": torch.zeros(1) for k in ("a.weight", "b.weight")}
    weights |= {"module.head.weight": torch.zeros(1), "b.weight": torch.ones(1)}
    found = strip_prefix(weights, ["a.weight", "b.weight"])
    assert set(found) == {"a.weight", "b.weight"}
    assert found["b.weight"] == 0


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_a_file_that_would_run_code_is_not_opened(tmp_path, capsys):
    torch.save({"state_dict": Evil()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(CheckpointError):
            read_weights(tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors", "none.pt", "empty.pt"])
def test_files_that_hold_no_weights(tmp_path, name):
    torch.save({"state_dict": {"a": torch.ones(1000)}}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:900])
    save_file({"a": torch.ones(1000)}, tmp_path / "whole.safetensors")
    cut = (tmp_path / "whole.safetensors").read_bytes()[:900]
    (tmp_path / "cut.safetensors").write_bytes(cut)
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(CheckpointError, match=r"cannot be read|no such weight|no weights"):
        read_weights(tmp_path / name)
