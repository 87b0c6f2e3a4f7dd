"""Problem: sizes, memory format, cost and hashing, against torch's own convolution."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch._prims_common import suggest_memory_format

from symconv_fast import Symmetry
from symconv_fast.problem import Problem, ShapeError, allocate, as_result, output_size, suggests_channels_last

FREE = (0, 1)


def problem(**changes) -> Problem:
    """A 2-D layer: 4 -> 12 channels, one h pair, one hv quadruple and 6 free filters; 3x3, padding 1."""
    values = {
        "batch": 2, "in_channels": 4, "spatial": (7, 9), "unique": 8, "out_channels": 12, "kernel": (3, 3),
        "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "output_padding": (0, 0), "transposed": False,
        "groups": 1, "ties": ((1, 1), (3, 1), (0, 6)), "dtype": torch.float32, "device": "cpu",
        "channels_last": False, "input_channels_last": False,
    }  # fmt: skip
    return Problem(**(values | changes))


@given(
    n=st.integers(1, 12), k=st.integers(1, 5), s=st.integers(1, 3), p=st.integers(0, 3), d=st.integers(1, 3),
    o=st.integers(0, 2), transposed=st.booleans(),
)  # fmt: skip
def test_output_size_is_that_of_torch(n, k, s, p, d, o, transposed):
    x, w = torch.randn(1, 1, n), torch.randn(1, 1, k)
    args = (FREE, [s], [p], [d], [o if transposed else 0], transposed, 1)
    try:
        if transposed:
            expected = F.conv_transpose1d(x, w, None, s, p, o, 1, d).shape
        else:
            expected = F.conv1d(x, w, None, s, p, d).shape
    except RuntimeError:
        with pytest.raises(ShapeError):
            output_size(x.shape, w.shape, *args)
        return
    # torch gives an empty tensor for some transposed sizes below 1; an empty map is refused here.
    assume(expected[-1] > 0)
    assert output_size(x.shape, w.shape, *args) == list(expected)


def layouts() -> list[torch.Tensor]:
    """4-D and 5-D tensors of every kind of stride."""
    found = []
    for shape in [
        (2, 3, 4, 5),
        (2, 1, 4, 5),
        (2, 3, 1, 1),
        (1, 3, 1, 5),
        (0, 3, 4, 5),
        (1, 1, 1, 1),
        (2, 3, 4, 5, 6),
    ]:
        x = torch.randn(shape)
        last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        y = x.contiguous(memory_format=last)
        found += [x, y, x[:, :, ::2], y[..., ::2], y[:, :2], x.transpose(-1, -2), y.transpose(-1, -2)]
        if 0 not in shape:
            found += [x[:1].expand(3, *shape[1:]), y[:, :1].expand(shape), x[..., :1].expand(shape)]
    return [*found, torch.randn(2, 3, 4), torch.randn(2, 5, 3).transpose(1, 2)]


def test_suggests_channels_last_is_that_of_c10():
    answers = []
    for x in layouts():
        expected = False if x.dim() == 3 else suggest_memory_format(x) != torch.contiguous_format
        assert suggests_channels_last(x) == expected, (x.shape, x.stride())
        answers.append(expected)
    assert 5 < sum(answers) < len(answers) - 5  # both answers are well represented


def test_suggested_layout_is_that_of_torch_convolution():
    """The rule "input or weight" against the strides that F.conv2d returns."""
    w0 = torch.randn(4, 3, 3, 3)
    for x in layouts():
        if x.dim() != 4 or x.shape[1] != 3 or 0 in x.shape or 1 in x.shape:
            continue
        for w in (w0, w0.contiguous(memory_format=torch.channels_last)):
            y = F.conv2d(x, w, padding=1)
            last = suggests_channels_last(x) or suggests_channels_last(w)
            fmt = torch.channels_last if last else torch.contiguous_format
            assert y.is_contiguous(memory_format=fmt), (x.shape, x.stride(), w.stride())


@pytest.mark.parametrize(
    "shape", [(2, 3, 4), (2, 3, 4, 5), (2, 3, 1, 1), (1, 1, 4, 1), (0, 3, 4, 5), (2, 3, 4, 5, 6)]
)
def test_as_result_and_allocate_agree_on_strides(shape):
    values = torch.randn(shape, dtype=torch.float64)
    for last, source in itertools.product(
        (False, True), (values, values.transpose(0, 1).clone().transpose(0, 1))
    ):
        expected = allocate(shape, values, last)
        result = as_result(source, last)
        assert result.stride() == expected.stride()
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
        assert torch.equal(result, values)


def test_shapes_and_costs():
    p = problem()
    assert p.input_shape == (2, 4, 7, 9)
    assert p.output_shape == (2, 12, 7, 9)
    assert p.weight_shape == (8, 4, 3, 3)
    assert p.expanded_shape == (12, 4, 3, 3)
    assert p.macs_folded == 2 * 63 * 8 * 4 * 9
    assert p.macs_dense == 2 * 63 * 12 * 4 * 9
    assert p.bytes == 4 * (2 * 4 * 63 + 2 * 12 * 63 + 8 * 4 * 9)
    assert p.ndim == 2
    t = problem(transposed=True, stride=(2, 2), output_padding=(1, 0))
    assert t.output_shape == (2, 12, 14, 17)
    assert t.weight_shape == (4, 8, 3, 3)
    assert t.macs_folded == p.macs_folded
    g = problem(groups=2, ties=((1, 2), (0, 6)), out_channels=10)
    assert g.weight_shape == (8, 2, 3, 3)
    assert g.macs_folded == p.macs_folded // 2
    for op, shape in (("fprop", p.output_shape), ("dgrad", p.input_shape), ("wgrad", p.weight_shape)):
        result = problem(channels_last=True).empty_result(op, torch.empty(0))
        assert tuple(result.shape) == shape
        assert result.is_contiguous(memory_format=torch.channels_last)


def test_create_gives_the_same_problem_and_it_hashes_and_pickles():
    ties = Symmetry({"h": 2, "hv": 4}).resolve(2, 12)
    sizes = (2, 4, 7, 9), (8, 4, 3, 3)
    static = (ties.flat, [1, 1], [1, 1], [1, 1], [0, 0], False, 1, False)
    made = Problem.create(sizes, static, False, torch.float32, "cpu")
    assert made == problem()
    assert hash(made) == hash(problem())
    assert pickle.loads(pickle.dumps(made)) == made
    assert made != problem(channels_last=True)
    assert made.layer_ties == ties
    with pytest.raises(AttributeError):
        made.batch = 3


@pytest.mark.parametrize(
    ("ties", "message"),
    [
        ((1,), "ties must be"),
        ((), "ties must be"),
        ((4, 8), "do not fit 2 dims"),
        ((9, 8), "do not fit 2 dims"),
        ((1, -1, 0, 9), "do not fit 2 dims"),
        ((1, 7), "needs 7 rows of weight"),
        ((1, 3, 0, 5), "divisible by groups"),
    ],
)
def test_malformed_ties_never_reach_a_kernel(ties, message):
    groups = 2 if "groups" in message else 1
    geometry = ([1, 1], [1, 1], [1, 1], [0, 0], False, groups)
    with pytest.raises(ShapeError, match=message):
        output_size((2, 4, 7, 9), (8, 4 // groups, 3, 3), ties, *geometry)
