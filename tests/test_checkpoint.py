"""Checkpoints: the record of the tie in the metadata of a state_dict, what keeps it, and messages that name the tie."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import symconv_fast as sf


def net(symmetry="h", **options) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), sf.SymmetricConv2d(4, 8, 3, symmetry=symmetry, **options))


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def stripped(state):
    nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")
    return state


KEEPS = {
    "as it is": lambda model: model.state_dict(),
    "saved": lambda model: saved(model.state_dict()),
    "deepcopy": lambda model: copy.deepcopy(model.state_dict()),
    "copy": lambda model: copy.copy(model.state_dict()),
    "of a deepcopy": lambda model: copy.deepcopy(model).state_dict(),
    "of DataParallel": lambda model: stripped(saved(nn.DataParallel(model).state_dict())),
    "loaded before": lambda model: reloaded(model).state_dict(),
}
LOSES = {
    "plain dict": lambda model: dict(model.state_dict()),
    "other keys": lambda model: OrderedDict((k, v.clone()) for k, v in model.state_dict().items()),
    "no metadata": lambda model: without_record(model.state_dict()),
}


def reloaded(model: nn.Module) -> nn.Module:
    other = net()
    other.load_state_dict(model.state_dict(), assign=True)
    return other


def without_record(state):
    """As torch's layers, CNN-Symmetry and this package without records write it."""
    for entry in state._metadata.values():
        entry.pop("symmetry", None)
    return saved(state)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("how", KEEPS)
def test_a_record_that_was_kept_lets_the_tie_in_and_others_not(how: str, assign: bool) -> None:
    model, same, other = net("h"), net({"h": 8}), net("v")
    state, before = KEEPS[how](model), other[1].weight.detach().clone()
    assert list(state) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert str(same.load_state_dict(state, assign=assign)) == "<All keys matched successfully>"
    assert torch.equal(same[1].weight, model[1].weight)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"Error.* in loading state_dict for Sequential") as raised:
            other.load_state_dict(state, assign=assign, strict=strict)
        text = str(raised.value)
        assert "1 is a SymmetricConv2d with symmetry={'v': 8}" in text
        assert "the checkpoint is of a layer with symmetry={'h': 8}, whose weight has the same shape" in text
        assert "load_state_dict(dict(state))" in text
        assert "missing" not in text.lower()
        assert "unexpected" not in text.lower()
        assert torch.equal(other[1].weight, before)
    other.load_state_dict(dict(state), assign=assign)  # the way out that the message names
    assert torch.equal(other[1].weight, model[1].weight)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("how", LOSES)
def test_without_a_record_shapes_alone_decide(how: str, assign: bool) -> None:
    model, other = net("h"), net("v")
    other.load_state_dict(LOSES[how](model), assign=assign)
    assert torch.equal(other[1].weight, model[1].weight)


def test_layers_of_torch_load_what_tied_layers_saved() -> None:
    plain, model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3)), net(None)
    plain.load_state_dict(saved(model.state_dict()))
    assert torch.equal(plain[1].weight, model[1].weight)
    model.load_state_dict(saved(plain.state_dict()))


@pytest.mark.parametrize(
    ("symmetry", "ties"),
    [
        ("hv", {"hv": 8}),
        ({"h": "50%"}, {"h": 4}),
        ({"hv": 4, "h": 2}, {"h": 2, "hv": 4}),
        (None, {}),
    ],
)
def test_the_record_is_the_tie_as_resolved(symmetry, ties) -> None:
    state = net(symmetry).state_dict()
    assert state._metadata["1"] == {"version": 1, "symmetry": ties}
    assert state._metadata["0"] == {"version": 1}


def test_a_layer_by_itself_and_all_classes() -> None:
    for cls in (sf.SymmetricConvTranspose1d, sf.SymmetricConv3d, sf.SymmetricConvTranspose3d):
        h, untied = cls(4, 8, 3, symmetry="h"), cls(4, 4, 3, bias=False)
        with pytest.raises(
            RuntimeError, match=rf"this is a {cls.__name__} with symmetry=\{{'h': 8\}} \(4 rows"
        ):
            h.load_state_dict(untied.state_dict())
        other = cls(4, 8, 3, symmetry="h")
        other.load_state_dict(saved(h.state_dict()))
        assert torch.equal(other.weight, h.weight)


MISFITS = {
    "another tie, recorded": (
        lambda: net("hv").state_dict(),
        r"of a layer with symmetry=\{'hv': 8\}: make the layer",
    ),
    "another tie": (lambda: dict(net("hv").state_dict()), "of a layer of another symmetry or size"),
    "ordinary": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3)).state_dict(),
        r"of an ordinary layer: load it into one.*SymmetricConv2d\.from_conv\(layer, symmetry\)",
    ),
    "shared bias": (
        lambda: net("h", share_bias=True).state_dict(),
        "bias has 4 values in the checkpoint: share_bias",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_other_shapes_give_torchs_message_and_ours(case: str) -> None:
    make, hint = MISFITS[case]
    with pytest.raises(RuntimeError, match=r"(?s)size mismatch for 1\..*" + hint) as raised:
        net("h").load_state_dict(make())
    assert (
        str(raised.value).count(
            "1 is a SymmetricConv2d with symmetry={'h': 8} (4 rows of weight for 8 filters"
        )
        == 1
    )


HOOKED = {
    "plain": (lambda model: model, "1.weight"),
    "parametrized": (
        lambda model: nn.utils.parametrizations.weight_norm(model[1]) and model,
        "1.parametrizations.weight.original1",
    ),
    "older weight_norm": (lambda model: nn.utils.weight_norm(model[1]) and model, "1.weight_v"),
    "pruned": (lambda model: prune.identity(model[1], "weight") and model, "1.weight_orig"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", HOOKED)
def test_a_layer_whose_weight_was_taken_out_is_left_alone(how: str) -> None:
    """Its record stays in the metadata of the filtered checkpoint, and is of nothing that would be loaded."""
    hook, key = HOOKED[how]
    old, new = hook(net("h")), hook(net("v"))
    whole, state = old.state_dict(), old.state_dict()
    for name in [name for name in state if name.startswith("1.")]:
        del state[name]
    before = new[1].weight.detach().clone()
    result = new.load_state_dict(state, strict=False)
    assert key in result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(new[0].weight, old[0].weight)
    assert torch.equal(new[1].weight, before)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\)") as raised:
        new.load_state_dict(state)
    assert "symmetry" not in str(raised.value)
    only = {name: whole.pop(name) for name in list(whole) if name != key}
    assert len(whole) == 1
    assert "0.weight" in only
    with pytest.raises(RuntimeError, match=r"the checkpoint is of a layer with symmetry=\{'h': 8\}"):
        new.load_state_dict(whole, strict=False)


def test_strict_still_finds_missing_and_unexpected_keys() -> None:
    state = net().state_dict()
    state["1.gain"] = state.pop("1.bias")
    with pytest.raises(
        RuntimeError, match=r'(?s)Missing.*"1\.bias".*Unexpected|Unexpected.*"1\.gain".*Missing'
    ):
        net().load_state_dict(state)
    result = net().load_state_dict(state, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["1.bias"], ["1.gain"])
