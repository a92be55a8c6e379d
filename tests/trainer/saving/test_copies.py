"""A copy has the state's values in memory of its own, used again, and is written as the state would be."""

import io

import torch

from stages.trainer.saving.copies import HostCopies, copy_sizes


def state(value):
    embedding, turned = torch.full((3, 5), value), torch.arange(24.0).reshape(4, 6).t() + value
    slot = {"step": torch.tensor(value), "moment": turned, "sign": torch.tensor([True, False]), "none": None}
    return {
        "model": {"embedding": embedding, "head": embedding.detach(), "empty": torch.zeros(0)},
        "optimizer": {"state": {0: slot}, "param_groups": [{"lr": value, "betas": (0.9, 0.95), "params": [0]}]},
    }


def saved(part):
    written = io.BytesIO()
    torch.save(part, written)
    return written.getvalue()


def test_copy_is_written_as_the_same_bytes():
    original = state(1.0)
    copied = HostCopies(pinned=False).take(original)
    assert saved(copied["optimizer"]) == saved(original["optimizer"])
    assert copied["optimizer"]["state"][0]["moment"].stride() == (1, 6)
    assert copied["model"]["head"] is copied["model"]["embedding"]


def test_copy_does_not_follow_the_training():
    original = state(1.0)
    copied = HostCopies(pinned=False).take(original)
    before = saved(copied)
    original["model"]["embedding"].add_(1)
    original["optimizer"]["state"][0]["moment"].add_(1)
    original["optimizer"]["param_groups"][0]["lr"] = 9.0
    assert saved(copied) == before


def test_memory_is_allocated_once():
    copies = HostCopies(pinned=False)
    copies.allocate(copy_sizes(state(1.0)))
    places = [place.data_ptr() for place in copies.places]
    copies.take(state(1.0))
    second = copies.take(state(2.0))
    assert [place.data_ptr() for place in copies.places] == places
    assert second["model"]["embedding"].equal(torch.full((3, 5), 2.0))
    copies.take({"model": torch.ones(100)})
    assert len(copies.places) == 1
