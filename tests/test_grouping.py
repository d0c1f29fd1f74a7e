"""Fakes put into groups by what they look like: whole videos, labels unseen, numbers that stay."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from test_train import edited, interrupt_at, lines, weights_of

from dfdetect.errors import DfdetectError
from dfdetect.grouping import _renumbered, cluster, group_fakes
from dfdetect.manifest import read_samples
from dfdetect.presets import load_preset
from dfdetect.train import train


def sharpness(images):
    """Mean and spread of each channel's gradients: [N,3,S,S] -> [N,6]."""
    slopes = images.diff(dim=3)
    return torch.cat([slopes.abs().mean((2, 3)), slopes.std((2, 3))], 1)


def test_planted_groups_are_found_whatever_the_units_of_the_features():
    rng = np.random.default_rng(1)
    truth = np.repeat([0, 1, 2], [30, 12, 20])
    centres = rng.normal(size=(3, 40)) * 4
    features = (centres[truth] + rng.normal(size=(62, 40))) * np.logspace(-6, 6, 40)
    found = cluster(features, 3, seed=0)
    assert set(found) == {1, 2, 3}
    assert adjusted_rand_score(truth, found) == 1


@pytest.mark.parametrize(
    ("features", "n_groups"),
    [(np.zeros((5, 8)), 1), (np.eye(8)[:1], 1), (np.eye(8)[[0, 0, 3, 3]], 2)],
)
def test_there_are_no_more_groups_than_different_videos(features, n_groups):
    assert len(set(cluster(features, 4, seed=0))) == n_groups


def test_groups_keep_their_numbers_when_they_are_found_again():
    before = np.array([1, 1, 1, 2, 2, 3, 3, 3])
    after = np.array([3, 3, 2, 1, 1, 2, 2, 2])  # the third video has moved
    assert _renumbered(after, before, 3).tolist() == [1, 1, 3, 2, 2, 3, 3, 3]


def test_the_names_in_the_manifest_change_nothing_but_the_agreement(data):
    samples = [s for s in read_samples(data) if s.split == "train"]
    blind = [s._replace(manipulation="unknown") if s.label else s for s in samples]
    named, hidden = (group_fakes(s, sharpness, 64, "cpu", 2, 0) for s in (samples, blind))
    assert named.of_video == hidden.of_video
    assert set(named.of_video) == {s.video_id for s in samples if s.label}
    assert -1 <= named.agreement <= 1 and np.isnan(hidden.agreement)


def test_a_video_s_group_rests_on_a_few_of_its_crops_at_one_quality(data):
    seen = []

    def count(images):
        seen.append(len(images))
        return sharpness(images)

    samples = [s for s in read_samples(data) if s.split == "train"]
    groups = group_fakes(samples, count, 64, "cpu", 2, 0)
    per_video = {}
    for s in samples:
        per_video.setdefault(s.video_id, set()).add(s.sample_id)
    assert sum(seen) == sum(min(4, len(per_video[v])) for v in groups.of_video)


AUTO = ["method.domains=auto", "method.auto_groups=2", "method.auto_every_epochs=1", "epochs=3",
        "steps_per_epoch=2", "image_size=64", "backbone.name=test_efficientnet"]  # fmt: skip


def test_training_with_automatic_domains_goes_on_after_a_stop_with_the_same_bits(data, tmp_path):
    """Stopped in an epoch whose groups were found before, and just before new ones are."""
    preset = load_preset("did-tiny", AUTO)
    train(preset, [data], tmp_path / "straight", device="cpu")
    found = [e for e in lines(tmp_path / "straight") if e["kind"] == "groups"]
    assert [e["step"] for e in found] == [2, 4]
    n_videos = len({s.video_id for s in read_samples(data) if s.split == "train" and s.label})
    assert all(sum(e["videos"].values()) == n_videos for e in found)
    for step in (3, 4):
        broken = tmp_path / f"stopped-{step}"
        with pytest.raises(DfdetectError, match="the state is saved"):
            train(preset, [data], broken, device="cpu", on_event=interrupt_at(step))
        train(preset, [data], broken, device="cpu", resume=True)
        ours, theirs = weights_of(broken), weights_of(tmp_path / "straight")
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
        logs = [(run / "metrics.jsonl").read_bytes() for run in (broken, tmp_path / "straight")]
        assert logs[0] == logs[1]


def test_labels_that_are_hidden_from_automatic_domains_are_not_used(data, tmp_path):
    """With every manipulation under one name, the losses are the same."""
    hide = {0: {}, 1: {"manipulation": "unknown"}}
    blind = edited(data, tmp_path / "blind", lambda row: hide[row["label"]])
    losses = []
    for folder in (data, blind):
        out = tmp_path / f"run-{folder.name}"
        train(load_preset("did-tiny", AUTO), [folder], out, device="cpu")
        losses.append([e["loss"] for e in lines(out) if e["kind"] == "train"])
    assert losses[0] == losses[1]
    (found,) = {json.dumps(e["agreement"]) for e in lines(out) if e["kind"] == "groups"}
    assert found == "null"
