# Exact padding: the rule, and the claim that nothing else is exact, against real convolutions and pooling.
from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from symconv_fast.nn import BlurPool2d, exact_padding, is_exact
from symconv_fast.nn.exact import unread

SMALL = list(itertools.product(range(1, 11), range(1, 5), range(1, 5), (1, 2)))
"""(n, K, s, d)"""


def conv_commutes(n, kernel, stride, pair, dilation):
    """Mirror the input and the filter: is the output the mirrored one? None where no tap meets the input."""
    x = F.pad(torch.rand(1, 1, n, dtype=torch.float64) + 1, pair)
    w = torch.rand(1, 1, kernel, dtype=torch.float64) + 1
    y = F.conv1d(x, w, stride=stride, dilation=dilation)
    if not y.any():
        return None
    # The padded input is mirrored within its padding, which stays where it is.
    inner = x[..., pair[0] : pair[0] + n].flip(-1)
    mirrored = F.conv1d(F.pad(inner, pair), w.flip(-1), stride=stride, dilation=dilation)
    return bool((mirrored.flip(-1) - y).abs().max() < 1e-12)


def pool_commutes(n, kernel, stride, pair, dilation):
    """The same of max-pooling, padded with -inf."""
    x = torch.rand(1, 1, n, dtype=torch.float64)

    def pool(values):
        return F.max_pool1d(F.pad(values, pair, value=-torch.inf), kernel, stride, dilation=dilation)

    return bool(torch.equal(pool(x.flip(-1)).flip(-1), pool(x)))


def test_the_rule_is_that_of_real_convolutions():
    seen = {True: 0, False: 0}
    for n, kernel, stride, dilation in SMALL:
        extent = dilation * (kernel - 1) + 1
        for pair in itertools.product(range(extent + 2), repeat=2):
            if n + sum(pair) < extent:
                continue
            real = conv_commutes(n, kernel, stride, pair, dilation)
            if real is not None:
                assert is_exact(n, kernel, stride, pair, dilation) == real, (
                    n,
                    kernel,
                    stride,
                    pair,
                    dilation,
                )
                seen[real] += 1
    assert min(seen.values()) > 1000


def test_exact_padding_is_exact_on_convolutions_and_pooling():
    pooled = 0
    for n, kernel, stride, dilation in SMALL:
        try:
            pair = exact_padding(n, kernel, stride, dilation)
        except ValueError:
            continue
        assert is_exact(n, kernel, stride, pair, dilation)
        assert conv_commutes(n, kernel, stride, pair, dilation) is not False
        assert pool_commutes(n, kernel, stride, pair, dilation)
        pooled += 1
    assert pooled > 200


def test_where_it_raises_no_padding_commutes_and_else_it_is_the_nearest():
    refused = 0
    for n, kernel, stride, dilation in SMALL:
        extent = dilation * (kernel - 1) + 1
        try:
            left, right = exact_padding(n, kernel, stride, dilation)
        except ValueError as error:
            refused += 1
            below = extent + 3 if "parity" in str(error) else extent
            for pair in itertools.product(range(below), repeat=2):
                if n + sum(pair) >= extent:
                    assert not conv_commutes(n, kernel, stride, pair, dilation)
                    assert not is_exact(n, kernel, stride, pair, dilation)
        else:
            fitting = [p for p in range(extent) if n + 2 * p >= extent]
            exact = [p for p in fitting if conv_commutes(n, kernel, stride, (p, p), dilation) is not False]
            exact = [p for p in exact if is_exact(n, kernel, stride, p, dilation)]
            assert left == right == min(exact, key=lambda p: (abs(p - extent // 2), p))
    assert refused == 100


def test_pooling_that_is_not_exact_shows_it():
    for n, kernel, stride, pad in [(8, 3, 2, 1), (10, 5, 2, 2), (8, 2, 3, 1), (9, 4, 2, 1)]:
        assert not is_exact(n, kernel, stride, pad)
        assert not pool_commutes(n, kernel, stride, (pad, pad), 1)


@pytest.mark.parametrize("n", [7, 8, 9])
def test_more_on_the_right_than_windows_read_changes_nothing(n):
    for kernel, stride in [(3, 2), (3, 3), (4, 3), (5, 4)]:
        for p in range(3):
            if (n + 2 * p - kernel) % stride == 0:
                for more in range(stride):
                    assert is_exact(n, kernel, stride, (p, p + more))
                    assert unread(n, kernel, stride, (p, p + more)) == more
                assert not is_exact(n, kernel, stride, (p, p + stride))
                assert not is_exact(n, kernel, stride, (p + 1, p))


def test_what_the_literature_says():
    """Stride 2: the size and the effective kernel share their parity, or nothing helps."""
    assert not any(is_exact(224, k, 2, (a, b)) for k in (3, 7) for a in range(9) for b in range(9))
    assert is_exact(225, 7, 2, 3)
    assert is_exact(224, 4, 2, 1)
    assert exact_padding(225, 7, 2) == (3, 3)
    assert exact_padding(224, 4, 2) == (2, 2)
    assert exact_padding(225, 3, 2, 2) == (2, 2)
    assert exact_padding(224, 3, 1) == (1, 1)


def test_axes():
    assert exact_padding((225, 113), 3, 2) == ((1, 1), (1, 1))
    assert exact_padding(225, (3, 7), 2) == ((1, 1), (3, 3))
    assert exact_padding((9, 9), (3, 4), (2, 3), (1, 2)) == (
        exact_padding(9, 3, 2),
        exact_padding(9, 4, 3, 2),
    )
    assert exact_padding((9,), 3, 2) == ((1, 1),)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact_padding(224, 3, 2), r"parity of n.* = 3; give n=223 or n=225"),
        (lambda: exact_padding(1, 2, 2), r"give n=2$"),
        (lambda: exact_padding(2, 1, 3), r"no padding below 1.*give n=4 with padding 0"),
        (lambda: exact_padding((9, 9), (3, 3, 3), 2), "one int for each of the same axes"),
        (lambda: exact_padding((), 3, 2), "one int for each of the same axes"),
        (lambda: exact_padding(0, 3, 2), "n=0 must be a positive int"),
        (lambda: is_exact(9, 3, 0, 1), "stride=0 must be a positive int"),
        (lambda: is_exact(9, -3, 1, 1), "kernel=-3 must be a positive int"),
        (lambda: is_exact(9, 3, 1, 1, 0), "dilation=0 must be a positive int"),
        (lambda: is_exact(9, 3, 1, -1), r"padding=-1 must be an int of at least 0, or two"),
        (lambda: is_exact(9, 3, 1, (1, 1, 1)), r"padding=\(1, 1, 1\) must be an int"),
        (lambda: is_exact(9, 3, 1, ()), r"padding=\(\) must be an int"),
        (lambda: is_exact((9, 9), 3, 1, 1), r"n=\(9, 9\) must be a positive int"),
        (lambda: is_exact(2, 3, 1, 0), r"no room for kernel=3.*give n of at least 3"),
        (lambda: is_exact(2, 7, 2, 1), r"no room for kernel=7.*give n of at least 5"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_arrays_are_as_tuples():
    for several in (np.array, torch.tensor):
        assert exact_padding(several([225, 9]), 7, 2) == ((3, 3), (3, 3)) == exact_padding((225, 9), 7, 2)
        assert exact_padding(225, 7, several(2)) == (3, 3)
        with pytest.raises(ValueError, match="parity of n"):
            exact_padding(several([225, 224]), 7, 2)
        with pytest.raises(ValueError, match="padding="):
            is_exact(9, 3, 1, several([1]))
    assert BlurPool2d(kernel_size=np.array([3, 4])).kernel_size == (3, 4)


@pytest.mark.parametrize("value", [9.0, "9", None, True, float("nan")])
def test_bad_types(value):
    with pytest.raises(TypeError, match="n="):
        is_exact(value, 3, 2, 1)
    with pytest.raises(TypeError, match="kernel="):
        exact_padding(9, value, 2)
