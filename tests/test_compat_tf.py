# The published TensorFlow layers: against their description in numpy (tf1.py); round trips; errors.
from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from tf1 import COUNTS, assert_same, drawn, image, run, tf_conv, theirs
from torch import nn

import symconv_fast as sf
from symconv_fast.compat import (
    CheckpointError,
    TFOrdered,
    TFSamePad2d,
    from_tf,
    tf_channel_order,
    tf_same_padding,
    to_tf,
)

# --- outputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", ["whole", "shared", "none"])
@pytest.mark.parametrize("which", COUNTS)
def test_outputs_are_theirs_in_the_given_order(which, bias) -> None:
    arrays, x = drawn(COUNTS[which], bias), image(2, 6, 5, 2)
    layer, order = from_tf(arrays)
    expected = theirs(x, arrays)
    np.testing.assert_allclose(run(layer, x), expected[..., order.numpy()], rtol=0, atol=1e-12)
    np.testing.assert_allclose(run(layer, x)[..., order.argsort().numpy()], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(run(TFOrdered(layer), x), expected, rtol=0, atol=1e-12)
    counts = {key: count for key, count in COUNTS[which].items() if key != "nonsym"}
    assert sf.checkpoint.describe(layer.ties) == counts
    one_each = bias == "shared" and which not in ("more h", "more v")
    assert layer.share_bias == one_each
    if bias != "none":
        assert layer.bias.shape == ((layer.unique_out_channels if one_each else layer.out_channels),)
    else:
        assert layer.bias is None


def test_shared_biases_of_h_go_by_the_name_of_v() -> None:
    """Said of them, and not to be mended: the kernels come in the order h, v and the biases in the order v, h."""
    arrays = drawn({"h": 4, "v": 4}, "shared")
    layer, _ = from_tf(arrays)
    assert np.array_equal(layer.bias.detach()[:2], arrays["bias_v"])
    assert np.array_equal(layer.bias.detach()[2:], arrays["bias_h"])
    uneven, _ = from_tf(drawn({"h": 6, "v": 2}, "shared"))
    first = uneven.bias.detach()[[0, 4]]  # the members of the first orbit of h
    assert uneven.expanded_weight().shape[0] == 8
    assert first[0] != first[1]


SAME = [
    # size, kernel, stride, dilation
    ((6, 5), (3, 3), (1, 1), (1, 1)),
    ((6, 5), (2, 4), (1, 1), (1, 1)),
    ((7, 6), (3, 2), (1, 1), (2, 3)),
    ((6, 5), (3, 3), (2, 2), (1, 1)),
    ((7, 8), (5, 3), (2, 3), (1, 1)),
    ((5, 9), (2, 2), (3, 2), (1, 1)),
    ((4, 4), (1, 3), (2, 2), (1, 1)),
    ((3, 3), (1, 1), (2, 2), (1, 1)),
    ((9, 8), (3, 3), (2, 2), (2, 2)),
    ((1, 1), (3, 3), (2, 2), (1, 1)),
]


@pytest.mark.filterwarnings("ignore::symconv_fast.SymmetryWarning", "ignore:Using padding='same'")
@pytest.mark.parametrize(("size", "kernel", "stride", "dilation"), SAME)
def test_same_padding_is_theirs(size, kernel, stride, dilation) -> None:
    arrays, x = drawn(COUNTS["more h"], "whole", kernel=kernel), image(2, *size, 2)
    options = {"stride": stride, "dilation": dilation}
    expected = theirs(x, arrays, padding="same", **options)
    layer, order = from_tf(arrays, **options)
    padded = nn.Sequential(TFSamePad2d(kernel, stride, dilation), layer)
    np.testing.assert_allclose(run(padded, x), expected[..., order.numpy()], rtol=0, atol=1e-12)
    unbatched = padded(torch.from_numpy(x[0]).permute(2, 0, 1))
    torch.testing.assert_close(unbatched, padded(torch.from_numpy(x).permute(0, 3, 1, 2))[0])
    if any(s > 1 and k > 1 for s, k in zip(stride, kernel)):
        way_out = f"TFSamePad2d(kernel_size={kernel}, stride={stride}, dilation={dilation}) in front"
        with pytest.raises(ValueError, match=re.escape(way_out)):
            from_tf(arrays, padding="SAME", **options)
    else:
        same, _ = from_tf(arrays, padding="SAME", **options)
        np.testing.assert_allclose(run(same, x), run(padded, x), rtol=0, atol=1e-12)


def test_symmetric_padding_is_not_theirs_at_stride_2() -> None:
    """Of even sizes they pad at the end alone: padding=1 of torch looks at other windows."""
    assert tf_same_padding(8, 3, 2) == (0, 1)
    assert tf_same_padding(7, 3, 2) == (1, 1)
    assert tf_same_padding(8, 3, 1) == (1, 1)
    assert tf_same_padding(8, 4, 1) == (1, 2)
    assert tf_same_padding(8, 1, 2) == (0, 0)
    assert tf_same_padding(9, 3, 2, 2) == (2, 2)
    arrays, x = drawn({"h": 4}, "whole"), image(1, 8, 8, 2)
    layer, order = from_tf(arrays, stride=2)
    layer.padding = (1, 1)
    far = np.abs(run(layer, x) - theirs(x, arrays, stride=(2, 2), padding="same")[..., order.numpy()])
    assert far.max() > 0.1


def test_an_axis_of_one_tap_may_have_a_stride() -> None:
    arrays = drawn({"v": 4}, "whole", kernel=(3, 1))
    layer, order = from_tf(arrays, stride=(1, 2), padding="same")
    assert layer.padding == (1, 0)
    x = image(1, 5, 6, 2)
    expected = theirs(x, arrays, stride=(1, 2), padding="same")[..., order.numpy()]
    np.testing.assert_allclose(run(layer, x), expected, rtol=0, atol=1e-12)


def test_a_whole_network() -> None:
    """Two tied layers, a batch norm, an ordinary layer, a stride with "SAME", flattening and a dense layer."""
    first, second = drawn(COUNTS["more h"], "shared"), drawn(COUNTS["more v"], "whole", channels=13, seed=5)
    random = np.random.default_rng(3)
    gamma, beta, mean, variance = random.standard_normal((4, 13)) ** 2 + 0.1
    plain, dense = random.standard_normal((1, 1, 11, 4)), random.standard_normal((3 * 3 * 11, 5))
    x = image(2, 6, 6, 2)

    y = np.maximum(theirs(x, first, padding="same"), 0)
    y = (y - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    y = np.maximum(theirs(y, second, stride=(2, 2), padding="same"), 0)
    logits, maps = y.reshape(2, -1) @ dense, tf_conv(y, plain)

    conv1, order = from_tf(first, padding="same")
    norm = nn.BatchNorm2d(13, eps=1e-3, dtype=torch.float64).eval()
    with torch.no_grad():
        for mine, value in zip(
            (norm.weight, norm.bias, norm.running_mean, norm.running_var), (gamma, beta, mean, variance)
        ):
            mine.copy_(torch.from_numpy(value)[order])
    conv2, order = from_tf(second, stride=2, input_order=order)
    body = nn.Sequential(conv1, nn.ReLU(), norm, TFSamePad2d(3, stride=2), conv2, nn.ReLU())
    inner = body(torch.from_numpy(x).permute(0, 3, 1, 2))
    weight = dense.reshape(3, 3, 11, 5)[:, :, order].transpose(3, 2, 0, 1).reshape(5, -1)
    np.testing.assert_allclose(inner.flatten(1).detach() @ torch.from_numpy(weight).T, logits, atol=1e-10)
    kernel = torch.from_numpy(plain[:, :, order].transpose(3, 2, 0, 1).copy())
    out = torch.nn.functional.conv2d(inner, kernel).detach().permute(0, 2, 3, 1)
    np.testing.assert_allclose(out, maps, atol=1e-10)


# --- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bias", ["whole", "shared", "none"])
@pytest.mark.parametrize("which", COUNTS)
def test_arrays_come_back_to_the_bit(which, bias, dtype) -> None:
    arrays = drawn(COUNTS[which], bias, kernel=(3, 2), channels=3, dtype=dtype)
    layer, _ = from_tf(arrays)
    back = to_tf(layer, share_bias=bias == "shared")
    assert_same(back, arrays)
    permuted, _ = from_tf(arrays, input_order=[2, 0, 1])
    assert torch.equal(permuted.weight, layer.weight[:, [2, 0, 1]])
    assert_same(to_tf(permuted, share_bias=bias == "shared", input_order=torch.tensor([2, 0, 1])), arrays)


@pytest.mark.parametrize("share_bias", [False, True])
@pytest.mark.parametrize(
    "symmetry", [None, "h", "hv", {"h": 4, "v": 4, "hv": 4}, {"v": 2, "h": 6, "hv": "25%"}]
)
def test_layers_come_back_to_the_bit(symmetry, share_bias) -> None:
    layer = sf.SymmetricConv2d(3, 16, 3, symmetry=symmetry, share_bias=share_bias)
    arrays = to_tf(layer)
    x = image(1, 4, 4, 3)
    order = tf_channel_order(layer.ties).numpy()
    np.testing.assert_allclose(run(layer.double(), x), theirs(x, arrays)[..., order], rtol=0, atol=1e-5)
    shares = layer.share_bias and symmetry != {"v": 2, "h": 6, "hv": "25%"}
    assert ("bias" not in arrays) == shares
    back, _ = from_tf(arrays)
    assert back.weight.dtype == torch.float32
    assert torch.equal(back.weight, layer.weight.float())
    assert torch.equal(back.expanded_bias(), layer.expanded_bias().float())


def test_names_as_tensorflow_has_them() -> None:
    first, second = drawn({"h": 4}, "shared"), drawn({"v": 2}, "whole", seed=7)
    both = {f"net/symmetric_conv2d/{name}:0": a for name, a in first.items()}
    both |= {f"net/symmetric_conv2d_1/{name}:0": a for name, a in second.items()}
    for scope, arrays in (("net/symmetric_conv2d", first), ("net/symmetric_conv2d_1/", second)):
        layer, _ = from_tf(both, scope=scope)
        assert_same(to_tf(layer), arrays)
    with pytest.raises(
        CheckpointError, match=r"name one, scope='net/symmetric_conv2d' or scope='net/symm.*_1'"
    ):
        from_tf(both)
    apart = {"a/kernel_sym_h": first["kernel_sym_h"], "b/kernel_sym_v": second["kernel_sym_v"]}
    with pytest.raises(CheckpointError, match="of several layers"):
        from_tf(apart)
    with pytest.raises(CheckpointError, match="'kernel_sym_h' twice, the second time as 'kernel_sym_h:0'"):
        from_tf({"kernel_sym_h": first["kernel_sym_h"], "kernel_sym_h:0": first["kernel_sym_h"]})
    with pytest.raises(CheckpointError, match="no name begins with scope='conv'"):
        from_tf(both, scope="conv")


def test_other_byte_orders_strides_and_tensors() -> None:
    arrays = drawn({"h": 4, "nonsym": 1}, "whole", dtype=np.float32)
    swapped = {name: a.astype(">f4") for name, a in arrays.items()}
    strided = {name: np.repeat(a, 2, -1)[..., ::2] for name, a in arrays.items()}
    tensors = {name: torch.from_numpy(a) for name, a in arrays.items()}
    for given in (swapped, strided, tensors):
        assert_same(to_tf(from_tf(given)[0]), arrays)
    layer, _ = from_tf(tensors)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    assert arrays["bias"].any()  # a layer does not write into what it was made of
    assert arrays["kernel_sym_h"].any()


# --- what does not fit ----------------------------------------------------------------------------------------------


def changed(**changes):
    arrays = drawn(COUNTS["equal h and v"], "shared")
    for name, value in changes.items():
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value
    return arrays


NAN = np.full((3, 3, 2, 2), np.nan)


@pytest.mark.parametrize(
    ("arrays", "error", "match"),
    [
        (
            changed(kernel_sym_h=NAN),
            CheckpointError,
            "kernel_sym_h has 36 of 36 values that are NaN or infinite",
        ),
        (
            changed(kernel_sym_v=np.zeros((3, 2, 2, 2))),
            CheckpointError,
            r"want \(3, 3, 2, 2\), since kernel_sym_h",
        ),
        (
            changed(kernel_sym_h=np.zeros((3, 3, 2))),
            CheckpointError,
            r"\(3, 3, 2\), want 4 dims \(height, width",
        ),
        (changed(kernel_sym_h=np.zeros((3, 3, 2, 0))), CheckpointError, "none of them 0"),
        (changed(bias_v=None), CheckpointError, "missing: 'bias_v'"),
        (changed(kernel_sym_v=None), CheckpointError, "without a kernel: 'bias_v'"),
        (changed(bias_hv=np.zeros(4)), CheckpointError, r"bias_hv has shape \(4,\), want \(1,\)"),
        (changed(bias=np.zeros(14)), CheckpointError, "both 'bias' and shared ones"),
        (
            changed(moving_mean=np.zeros(14)),
            CheckpointError,
            "unknown names 'moving_mean'; a SymmetricConv2D has bias",
        ),
        (
            drawn({"h": 4}, "whole") | {"bias": np.zeros(5)},
            CheckpointError,
            r"want \(4,\): .*symmetry={'h': 4}",
        ),
        ({"bias": np.zeros(4)}, CheckpointError, "none of the kernels kernel_sym_h"),
        ({"kernel": np.zeros((3, 3, 2, 2))}, CheckpointError, "'kernel' is of an ordinary layer"),
        (
            {"kernel": np.zeros((1, 2, 2)), "surround": np.zeros((1, 2, 2))},
            CheckpointError,
            "use global_from_tf",
        ),
        (
            changed(kernel_sym_h=np.zeros((3, 3, 2, 2), np.float32)),
            TypeError,
            "one dtype, got float32, float64",
        ),
        (
            changed(kernel_sym_h=np.zeros((3, 3, 2, 2), int)),
            TypeError,
            "of dtype int64, want float16, float32",
        ),
        (
            changed(kernel_sym_h=torch.zeros(3, 3, 2, 2).bfloat16()),
            TypeError,
            "bfloat16, which numpy has not",
        ),
        (changed(kernel_sym_h=[1.0]), TypeError, "must be an array, got list"),
        ({}, TypeError, "needs a dict of arrays"),
        (None, TypeError, "needs a dict of arrays by name, got None"),
        (np.zeros((3, 3, 2, 2)), TypeError, "needs a dict of arrays"),
        ({0: np.zeros((3, 3, 2, 2))}, TypeError, "names must be text"),
    ],
)
def test_bad_arrays(arrays, error, match) -> None:
    with pytest.raises(error, match=match):
        from_tf(arrays)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"padding": "full"}, ValueError, "padding='full' is not one of the published layer's"),
        ({"padding": 1}, ValueError, "padding=1 is not one"),
        ({"scope": 3}, TypeError, "scope=3 must be text or None"),
        ({"padding": "same", "stride": 2}, ValueError, r"TFSamePad2d\(kernel_size=\(3, 3\), stride=\(2, 2\)"),
        ({"stride": 0}, ValueError, "stride=0 must be an int of 1 or more"),
        ({"stride": (1, 2, 3)}, ValueError, "or two of them"),
        ({"dilation": 1.5}, TypeError, "dilation=1.5 must be an int"),
        ({"input_order": [0, 0]}, ValueError, "permutation of the 2 input channels"),
        ({"input_order": [0, 1, 2]}, ValueError, "permutation of the 2 input channels"),
        ({"input_order": [0.0, 1.0]}, TypeError, "input_order must be a permutation"),
        ({"input_order": torch.eye(2)}, TypeError, "input_order must be a permutation"),
    ],
)
def test_bad_options(options, error, match) -> None:
    with pytest.raises(error, match=match):
        from_tf(changed(), **options)


def test_what_has_no_values_is_neither_read_nor_written() -> None:
    with pytest.raises(CheckpointError, match="kernel_sym_h has no values, it is on the meta device"):
        from_tf({"kernel_sym_h": torch.zeros(3, 3, 2, 2, device="meta")})
    layer = sf.SymmetricConv2d(2, 4, 3, symmetry="h", device="meta")
    with pytest.raises(CheckpointError, match="weight has no values"):
        to_tf(layer)
    with pytest.raises(TypeError, match="share_bias='no' must be True or False"):
        to_tf(layer, share_bias="no")


def test_a_size_is_one_number() -> None:
    with pytest.raises(ValueError, match=r"size=\(5,\) must be an int of 1 or more"):
        tf_same_padding((5,), 3)


def test_layers_that_theirs_cannot_be() -> None:
    for function in (to_tf, TFOrdered):
        with pytest.raises(TypeError, match="needs a SymmetricConv2d, got Conv2d"):
            function(nn.Conv2d(2, 2, 3))
        with pytest.raises(TypeError, match="needs a SymmetricConv2d, got SymmetricConv3d"):
            function(sf.SymmetricConv3d(2, 2, 3))
        with pytest.raises(ValueError, match="groups=1, as the published one, got groups=2"):
            function(sf.SymmetricConv2d(4, 4, 3, groups=2, symmetry="h"))
    whole = sf.SymmetricConv2d(2, 4, 3, symmetry="h")
    with pytest.raises(
        CheckpointError, match="the biases differ where bias_h of the published layer is shared"
    ):
        to_tf(whole, share_bias=True)
    with pytest.raises(ValueError, match="needs a layer with a bias"):
        to_tf(sf.SymmetricConv2d(2, 4, 3, symmetry="h", bias=False), share_bias=True)
    with pytest.raises(TypeError, match="bfloat16, which numpy has not"):
        to_tf(whole.bfloat16())
    with torch.no_grad():
        whole.float().weight[0] = float("inf")
    with pytest.raises(CheckpointError, match="weight has 18 of 36 values that are NaN or infinite"):
        to_tf(whole)
    with pytest.raises(TypeError, match=r"needs the ties of a layer, layer\.ties, got SymmetricConv2d"):
        tf_channel_order(whole)
    with pytest.raises(ValueError, match="got ndim=3, groups=1"):
        tf_channel_order(sf.SymmetricConv3d(2, 2, 3).ties)


def test_same_is_refused_where_an_axis_of_stride_1_has_uneven_padding() -> None:
    arrays = {"kernel_sym_h": torch.randn(1, 2, 2, 2)}
    with pytest.raises(ValueError, match="adds more at its end"):
        from_tf(arrays, padding="same", stride=(2, 1))
    arrays = {"kernel_sym_h": torch.randn(1, 3, 2, 2)}
    assert from_tf(arrays, padding="same", stride=(2, 1))[0].padding == (0, 1)


def test_bad_padding() -> None:
    with pytest.raises(ValueError, match="kernel_size=0 must be an int of 1 or more"):
        tf_same_padding(8, 0)
    with pytest.raises(TypeError, match=r"size=8\.0 must be an int"):
        tf_same_padding(8.0, 3)
    with pytest.raises(ValueError, match=re.escape("stride=(2, 2, 2) must be an int of 1 or more, or two")):
        TFSamePad2d(3, (2, 2, 2))
    with pytest.raises(
        ValueError, match=re.escape("expected input (N, C, H, W) or (C, H, W), got shape (4, 4)")
    ):
        TFSamePad2d(3)(torch.zeros(4, 4))
    with pytest.raises(TypeError, match="input must be a Tensor, got ndarray"):
        TFSamePad2d(3)(np.zeros((1, 1, 4, 4)))
    assert repr(TFSamePad2d(3, 2)) == "TFSamePad2d(kernel_size=(3, 3), stride=(2, 2), dilation=(1, 1))"


def test_ordered_layers_are_modules_like_others() -> None:
    layer = sf.SymmetricConv2d(2, 8, 3, symmetry={"h": 4, "v": 2})
    ordered, x = TFOrdered(layer), torch.randn(2, 2, 5, 5)
    other = TFOrdered(sf.SymmetricConv2d(2, 8, 3, symmetry={"h": 4, "v": 2}))
    other.load_state_dict(ordered.state_dict())
    assert torch.equal(other(x), ordered(x))
    torch.testing.assert_close(ordered(x[0]), ordered(x)[0])  # another batch may get another algorithm
    torch.testing.assert_close(sf.to_torch(ordered)(x), ordered(x))
    ordered(x).sum().backward()
    assert layer.weight.grad is not None
