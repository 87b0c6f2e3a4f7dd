# BlurPool: against a matrix built by hand, and at which sizes it commutes with mirrors.
from __future__ import annotations

import copy
import itertools
import math
import pickle
import re

import pytest
import torch
from torch import nn

from symconv_fast.nn import BlurPool1d, BlurPool2d, BlurPool3d

BLUR = {1: BlurPool1d, 2: BlurPool2d, 3: BlurPool3d}
F64 = {"dtype": torch.float64}
PLACE = {
    "reflect": lambda i, n: -i if i < 0 else 2 * (n - 1) - i if i >= n else i,
    "replicate": lambda i, n: min(max(i, 0), n - 1),
    "circular": lambda i, n: i % n,
    "zeros": lambda i, n: i if 0 <= i < n else None,
}


def matrix(n, taps, stride, mode, left):
    """(ceil(n / stride), n): the blur of one axis, its windows starting at i * stride - left."""
    rows = torch.zeros(math.ceil(n / stride), n, **F64)
    for i, k in itertools.product(range(len(rows)), range(taps)):
        place = PLACE[mode](i * stride - left + k, n)
        if place is not None:
            rows[i, place] += math.comb(taps - 1, k) / 2 ** (taps - 1)
    return rows


@pytest.mark.parametrize("mode", PLACE)
def test_values_of_the_paper_at_stride_two(mode):
    """Its layers pad by (K-1) // 2 on the left."""
    for n, taps in itertools.product(range(5, 12), range(1, 8)):
        x = torch.randn(2, 3, n, **F64)
        y = BlurPool1d(kernel_size=taps, padding_mode=mode)(x)
        left = (taps - 1) // 2
        torch.testing.assert_close(y, x @ matrix(n, taps, 2, mode, left).T, rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", PLACE)
def test_values_at_other_strides_are_those_of_centred_windows(mode):
    for n, taps, stride in itertools.product(range(6, 12), range(1, 7), (1, 3, 4, 5)):
        x = torch.randn(1, 2, n, **F64)
        y = BlurPool1d(kernel_size=taps, stride=stride, padding_mode=mode)(x)
        total = (math.ceil(n / stride) - 1) * stride + taps - n
        near = [
            x @ matrix(n, taps, stride, mode, left).T
            for left in {math.floor(total / 2), math.ceil(total / 2)}
        ]
        assert min((y - value).abs().max() for value in near) < 1e-13


def test_axes_are_those_of_the_arguments():
    x = torch.randn(2, 3, 8, 9, 10, **F64)
    y = BlurPool3d(3, (4, 5, 3), (2, 3, 1))(x)
    rows = [matrix(8, 4, 2, "reflect", 1), matrix(9, 5, 3, "reflect", 1), matrix(10, 3, 1, "reflect", 1)]
    torch.testing.assert_close(y, torch.einsum("ncdhw,ad,bh,ew->ncabe", x, *rows), rtol=0, atol=1e-13)
    y = BlurPool2d(kernel_size=(4, 3))(x[..., 0])
    rows = [matrix(8, 4, 2, "reflect", 1), matrix(9, 3, 2, "reflect", 1)]
    torch.testing.assert_close(y, torch.einsum("ncdh,ad,bh->ncab", x[..., 0], *rows), rtol=0, atol=1e-13)


# --- mirrors ---------------------------------------------------------------------------------------------------------


def mirror_error(layer, x, axes=(-1,)):
    return (layer(x.flip(axes)).flip(axes) - layer(x)).abs().max()


@pytest.mark.parametrize("mode", PLACE)
def test_exact_to_rounding_or_visibly_not(mode):
    """`is_exact` against the layer, and at stride 2 against the table: K and n share their parity."""
    seen = {True: 0, False: 0}
    for n, taps, stride in itertools.product(range(6, 14), range(2, 8), (1, 2, 3, 4)):
        layer = BlurPool1d(kernel_size=taps, stride=stride, padding_mode=mode)
        error = mirror_error(layer, torch.randn(1, 4, n, **F64))
        exact = layer.is_exact(n)
        seen[exact] += 1
        assert error < 1e-12 if exact else error > 1e-3, (n, taps, stride)
        if stride == 2:
            assert exact == (n % 2 == taps % 2)
    assert min(seen.values()) > 50


def test_exact_takes_a_tap_less_where_it_has_to():
    for n, taps, stride in itertools.product(range(6, 14), range(3, 8), (1, 2, 3, 4)):
        layer = BlurPool1d(kernel_size=taps, stride=stride, exact=True)
        fixed = [BlurPool1d(kernel_size=k, stride=stride) for k in (taps, taps - 1)]
        x = torch.randn(1, 4, n, **F64)
        assert layer.is_exact(n)
        assert mirror_error(layer, x) < 1e-12
        kept = fixed[0] if fixed[0].is_exact(n) else fixed[1]
        assert torch.equal(layer(x), kept(x))
        assert fixed[0].is_exact(n) != fixed[1].is_exact(n)


@pytest.mark.parametrize("axes", [(-1,), (-2,), (-1, -2)])
def test_exact_in_two_dimensions(axes):
    for size in itertools.product((8, 9), (10, 11)):
        x = torch.randn(1, 2, *size, **F64)
        assert mirror_error(BlurPool2d(exact=True), x, axes) < 1e-12
        layer = BlurPool2d()
        assert layer.is_exact(size) == (size == (8, 10))
        assert (mirror_error(layer, x, axes) < 1e-12) == all(size[axis] % 2 == 0 for axis in axes)


# --- types, modes, errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_dtypes_follow_the_input(ndim, dtype):
    layer, x = BLUR[ndim](), torch.randn(2, 3, *[6, 7, 8][:ndim], dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    error = (y.double() - layer(x.double())).abs().max()
    assert error < 4 * torch.finfo(dtype).eps
    assert layer.half()(x).dtype == dtype


def test_constants_stay_and_nothing_is_saved():
    for taps in range(1, 9):
        layer = BlurPool2d(kernel_size=taps)
        assert torch.equal(layer(torch.ones(1, 2, 9, 12)), torch.ones(1, 2, 5, 6))
        assert not list(layer.parameters())
        assert not list(layer.buffers())
        assert not layer.state_dict()
    with torch.device("meta"):
        made = nn.Sequential(BlurPool2d())
    made.to_empty(device="cpu")
    assert torch.equal(made(torch.ones(1, 2, 8, 8)), torch.ones(1, 2, 4, 4))
    assert layer(torch.ones(1, 2, 9, 9, device="meta")).device.type == "meta"


def test_gradients():
    for ndim, options in itertools.product(
        (1, 2), ({}, {"exact": True}, {"padding_mode": "circular", "stride": 3})
    ):
        layer = BLUR[ndim](**options)
        x = torch.randn(1, 2, *[5, 6][:ndim], **F64, requires_grad=True)
        assert torch.autograd.gradcheck(layer, x)
        assert torch.autograd.gradgradcheck(layer, x)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_unbatched_and_empty(ndim):
    layer, x = BLUR[ndim](3), torch.randn(2, 3, *[7, 6, 8][:ndim], **F64)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
    empty = x[:0].requires_grad_()
    y = layer(empty)
    assert y.shape == (0, 3, *layer(x).shape[2:])
    y.sum().backward()
    assert empty.grad.shape == empty.shape


def test_layouts():
    layer, x = BlurPool2d(), torch.randn(2, 4, 9, 8)
    y = layer(x)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), y)
    torch.testing.assert_close(layer(x.transpose(2, 3)), layer(x.transpose(2, 3).contiguous()))
    torch.testing.assert_close(layer(x[:1, :1].expand(2, 4, 9, 8)), layer(x[:1, :1].repeat(2, 4, 1, 1)))


def test_copies_repr_compile_export_fx():
    layer, x = BlurPool2d(4, exact=True), torch.randn(2, 4, 8, 9)
    y = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), y)
    assert repr(BlurPool1d()) == "BlurPool1d(kernel_size=(4,), stride=(2,))"
    assert repr(BlurPool2d(4, (3, 4), 1, exact=True, padding_mode="zeros")) == (
        "BlurPool2d(4, kernel_size=(3, 4), stride=(1, 1), exact=True, padding_mode='zeros')"
    )
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), y)
    many = torch.export.Dim("many", min=2, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: many},))
    more = torch.randn(5, 4, 8, 9)
    torch.testing.assert_close(program.module()(more), layer(more))
    traced = torch.fx.symbolic_trace(nn.Sequential(layer, nn.ReLU()))
    torch.testing.assert_close(traced(x), y.relu())


def test_export_for_any_size():
    layer = BlurPool1d()
    program = torch.export.export(
        layer, (torch.randn(2, 4, 9),), dynamic_shapes=({2: torch.export.Dim.DYNAMIC},)
    )
    for size in (8, 9, 31):
        x = torch.randn(2, 4, size)
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize(
    ("options", "size", "least"),
    [
        ({}, 1, 2),
        ({"kernel_size": 7}, 3, 4),
        ({"kernel_size": 6}, 2, 4),  # of 3 values 3 would be needed
        ({"kernel_size": 9, "padding_mode": "circular"}, 3, 4),
    ],
)
def test_sizes_too_small_to_pad(options, size, least):
    layer = BlurPool1d(**options)
    with pytest.raises(
        ValueError, match=f"a size of {size} is too small for padding_mode.*size of at least {least},"
    ):
        layer(torch.randn(1, 1, size))
    BlurPool1d(**options | {"padding_mode": "replicate"})(torch.randn(1, 1, size))
    BlurPool1d(**options | {"padding_mode": "zeros"})(torch.randn(1, 1, size))


def test_the_smallest_sizes_that_the_message_names_are_enough():
    for taps, mode, n, exact in itertools.product(range(3, 9), PLACE, range(1, 9), (False, True)):
        layer = BlurPool1d(kernel_size=taps, padding_mode=mode, exact=exact)
        try:
            assert layer(torch.randn(1, 1, n)).shape[-1] == math.ceil(n / 2)
        except ValueError as error:
            least = int(re.search(r"size of at least (\d+)", str(error))[1])
            assert least > n
            assert works(layer, least)
            assert not any(works(layer, m) for m in range(n, least))


def works(layer, n):
    try:
        layer(torch.randn(1, 1, n))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: BlurPool2d(kernel_size=0),
            ValueError,
            "kernel_size=0 must be an int of at least 1 or 2 of them",
        ),
        (
            lambda: BlurPool2d(kernel_size=2, exact=True),
            ValueError,
            "kernel_size=2 must be an int of at least 3",
        ),
        (lambda: BlurPool2d(kernel_size=(3, 3, 3)), ValueError, r"kernel_size=\(3, 3, 3\)"),
        (lambda: BlurPool1d(stride=()), ValueError, r"stride=\(\)"),
        (lambda: BlurPool1d(stride=-1), ValueError, "stride=-1"),
        (lambda: BlurPool1d(0), ValueError, "channels=0 must be an int of at least 1"),
        (lambda: BlurPool1d(2.0), TypeError, "channels=2.0"),
        (lambda: BlurPool1d(kernel_size=float("nan")), TypeError, "kernel_size=nan"),
        (lambda: BlurPool1d(exact="yes"), TypeError, "exact='yes' must be True or False"),
        (lambda: BlurPool1d(padding_mode="same"), ValueError, "must be one of 'reflect', 'replicate'"),
        (lambda: BlurPool1d().is_exact((3, 4)), ValueError, r"size=\(3, 4\)"),
        (
            lambda: BlurPool2d()(torch.randn(8, 8)),
            ValueError,
            "3-D .unbatched. or 4-D .batched. input to BlurPool2d",
        ),
        (
            lambda: BlurPool2d(3)(torch.randn(1, 2, 8, 8)),
            ValueError,
            "expected input of 3 channels, got shape",
        ),
        (lambda: BlurPool2d()(torch.randn(1, 0, 8, 8)), ValueError, "is empty; give at least 1 channel"),
        (
            lambda: BlurPool2d()(torch.randn(1, 2, 0, 8)),
            ValueError,
            "is empty; give at least 1 channel, and 1 value",
        ),
        (
            lambda: BlurPool2d()(torch.ones(1, 2, 8, 8, dtype=torch.int64)),
            TypeError,
            "int64 is not supported",
        ),
        (lambda: BlurPool2d()(torch.ones(1, 2, 8, 8, dtype=torch.complex64)), TypeError, "complex64 is not"),
        (lambda: BlurPool2d()([1.0]), TypeError, "input must be a Tensor"),
        (lambda: BlurPool2d()(None), TypeError, "input must be a Tensor, got NoneType"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
