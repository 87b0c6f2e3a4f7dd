"""The table of bad input, row by row: never a crash, never silence, and a message that names a valid value."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import symconv_fast as sf
from symconv_fast import Symmetry, ops
from symconv_fast import functional as SF

CONV = {1: sf.SymmetricConv1d, 2: sf.SymmetricConv2d, 3: sf.SymmetricConv3d}
ALL_KEYS = {1: "h", 2: "h, v, hv", 3: "h, v, z, hv, hz, vz, hvz"}


# --- unknown key, repeated letter, key of more dimensions ----------------------------------------------------------


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("key", ["x", "hh", "hvh", "", "H", "h v", "hw", "horizontal", "hvzz"])
def test_bad_keys_list_the_keys_of_the_layer(ndim, key):
    for symmetry in (key, {key: 8}):
        with pytest.raises(
            ValueError, match=re.escape(f"{key!r} is not valid; valid keys: {ALL_KEYS[ndim]}")
        ):
            CONV[ndim](2, 16, 3, symmetry=symmetry)


@pytest.mark.parametrize(
    ("ndim", "key"), [(1, "v"), (1, "z"), (1, "hv"), (2, "z"), (2, "hz"), (2, "vz"), (2, "zvh")]
)
def test_keys_of_more_dimensions(ndim, key):
    match = re.escape(f"more dimensions than a {ndim}-D layer has; valid keys: {ALL_KEYS[ndim]}")
    for symmetry in (key, {key: 8}, Symmetry(key)):
        with pytest.raises(ValueError, match=match):
            CONV[ndim](2, 16, 3, symmetry=symmetry)
    with pytest.raises(ValueError, match=match):
        Symmetry(key).resolve(ndim, 16)
    weight = torch.randn(16, 2, *[3] * ndim)
    with pytest.raises(ValueError, match=match):
        getattr(SF, f"symmetric_conv{ndim}d")(torch.randn(1, 2, *[5] * ndim), weight, symmetry=key)


def test_the_same_tie_twice():
    with pytest.raises(ValueError, match="names the tie 'hv' twice"):
        sf.SymmetricConv2d(2, 16, 3, symmetry={"hv": 4, "vh": 4})


# --- counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("symmetry", "groups", "message"),
    [
        ({"h": 3}, 1, "'h'] = 3 is not divisible by 2 .*nearest valid: 2 and 4"),
        ({"hv": 6}, 1, "'hv'] = 6 is not divisible by 4 .*nearest valid: 4 and 8"),
        ({"hv": 12}, 2, "'hv'] = 12 is not divisible by 8 .*groups=2.*nearest valid: 8 and 16"),
        ({"h": 2}, 4, "'h'] = 2 is not divisible by 8 .*nearest valid: 0 and 8"),
        ({"hv": 15}, 1, "nearest valid: 12 and 16"),
        ({"hv": 5, "h": 4}, 1, "nearest valid: 4 and 8"),
    ],
)
def test_counts_that_are_no_whole_orbits_get_the_two_nearest(symmetry, groups, message):
    with pytest.raises(ValueError, match=message):
        sf.SymmetricConv2d(4, 16, 3, groups=groups, symmetry=symmetry)
    with pytest.raises(ValueError, match=message):
        sf.SymmetricConvTranspose2d(4, 16, 3, groups=groups, symmetry=symmetry)


def test_nearest_counts_stay_within_the_layer():
    with pytest.raises(ValueError, match=r"nearest valid: 8 and 12$"):
        sf.SymmetricConv2d(4, 14, 3, symmetry={"hv": 13})


@pytest.mark.parametrize(
    ("symmetry", "error", "message"),
    [
        ({"h": 18}, ValueError, "add up to 18 filters, more than out_channels=16"),
        ({"h": 17}, ValueError, "more than out_channels=16"),
        (
            {"h": 8, "hv": 12},
            ValueError,
            "{'h': 8, 'hv': 12} add up to 20 filters, more than out_channels=16",
        ),
        ({"h": "100%", "v": "20%"}, ValueError, "adds up to 120% of the filters"),
        ({"h": -2}, ValueError, "'h'] = -2 is negative"),
        ({"h": True}, TypeError, "'h'] = True must be a whole number"),
        ({"h": 4.0}, TypeError, "'h'] = 4.0 must be a whole number"),
        ({"h": None}, TypeError, "'h'] = None must be a whole number"),
        ({"h": np.bool_(True)}, TypeError, "must be a whole number"),
        ({"h": np.float32(2)}, TypeError, "must be a whole number"),
        ({"h": "abc%"}, ValueError, "'abc%' is not a share"),
        ({"h": "120%"}, ValueError, "'120%' is not a share"),
        ({"h": "-5%"}, ValueError, "'-5%' is not a share"),
        ({"h": "nan%"}, ValueError, "'nan%' is not a share"),
        ({"h": "1/2%"}, ValueError, "'1/2%' is not a share"),
        ({"h": "50"}, ValueError, "'50' is not a share"),
        ({"h": ""}, ValueError, "'' is not a share"),
        ({1: 2}, TypeError, "keys must be strings, got 1"),
        (["h"], TypeError, "symmetry must be a dict"),
        (4, TypeError, "symmetry must be a dict"),
        (0.5, TypeError, "symmetry must be a dict"),
    ],
)
def test_counts_of_other_kinds(symmetry, error, message):
    with pytest.raises(error, match=message):
        sf.SymmetricConv2d(2, 16, 3, symmetry=symmetry)


def test_counts_of_numpy_are_counts():
    assert sf.SymmetricConv2d(2, 16, 3, symmetry={"h": np.int64(4)}).unique_out_channels == 14


# --- weight and bias -----------------------------------------------------------------------------------------------

X = torch.randn(2, 4, 6, 6)
W = torch.randn(4, 4, 3, 3)


@pytest.mark.parametrize(
    ("weight", "symmetry", "groups", "message"),
    [
        (
            W,
            Symmetry({"hv": 8}).resolve(2, 12),
            1,
            r"6 rows along dim 0 .*got weight of shape \[4, 4, 3, 3\]",
        ),
        (W, {"hv": 20}, 1, "need at least 5 rows of weight, got 4"),
        (torch.randn(4, 4, 3), None, 1, r"weight with 4 dims .*got shape \[4, 4, 3\]"),
        (torch.randn(4, 4, 3, 3, 3), None, 1, r"weight with 4 dims .*got shape \[4, 4, 3, 3, 3\]"),
        (
            torch.randn(4, 3, 3, 3),
            None,
            1,
            r"weight of shape \[4, 3, 3, 3\], expected input of shape \(N, 3, \.\.\.\)",
        ),
        (torch.randn(3, 2, 3, 3), None, 2, "3 rows, which must be divisible by groups=2"),
        (torch.randn(4, 4, 0, 3), None, 1, "kernel and spatial sizes must be at least 1"),
        (W, Symmetry("h").resolve(1, 8), 1, "resolved for 1 dims"),
        (torch.randn(4, 2, 3, 3), Symmetry("h").resolve(2, 8), 2, "resolved for groups=1, but groups=2"),
    ],
)
def test_weights_that_do_not_fit(weight, symmetry, groups, message):
    with pytest.raises(ValueError, match=message):
        SF.symmetric_conv2d(X, weight, groups=groups, symmetry=symmetry)


def test_transposed_weights_that_do_not_fit():
    with pytest.raises(ValueError, match=r"6 rows along dim 1 .*got weight of shape \[4, 4, 3, 3\]"):
        SF.symmetric_conv_transpose2d(X, W, symmetry=Symmetry({"hv": 8}).resolve(2, 12))
    with pytest.raises(ValueError, match=r"expected input of shape \(N, 3, \.\.\.\)"):
        SF.symmetric_conv_transpose2d(X, torch.randn(3, 4, 3, 3), symmetry=None)


def test_bias_that_does_not_fit():
    with pytest.raises(
        ValueError, match=r"bias of shape \(16,\), or \(4,\) shared within orbits, got \(5,\)"
    ):
        SF.symmetric_conv2d(X, W, torch.randn(5), symmetry="hv")
    with pytest.raises(ValueError, match="bias of shape"):
        SF.symmetric_conv2d(X, W, torch.randn(4, 1), symmetry="hv")


@pytest.mark.parametrize("shape", [(6, 6), (1, 2, 4, 6, 6), (4,), ()])
def test_inputs_of_other_dims(shape):
    """ValueError as for the weight, and a RuntimeError too, because that is what torch's layers raise."""
    for error in (ValueError, RuntimeError):
        with pytest.raises(error, match=r"3-D \(unbatched\) or 4-D \(batched\) input"):
            sf.SymmetricConv2d(4, 8, 3, symmetry="h")(torch.randn(shape))


def test_input_of_other_channels():
    for error in (ValueError, RuntimeError):
        with pytest.raises(
            error, match=r"expected input of shape \(N, 4, \.\.\.\), but got \[2, 5, 6, 6\] with 5"
        ):
            sf.SymmetricConv2d(4, 8, 3, symmetry="h")(torch.randn(2, 5, 6, 6))


@pytest.mark.parametrize("cls", [sf.SymmetricConv2d, sf.SymmetricConvTranspose2d])
def test_unbatched_input_of_other_channels_is_named_as_it_was_given(cls):
    for error in (ValueError, RuntimeError):
        with pytest.raises(
            error, match=r"unbatched input of shape \(4, \.\.\.\), but got \[5, 6, 6\] with 5 channels"
        ):
            cls(4, 8, 3, symmetry="h")(torch.randn(5, 6, 6))


# --- dtype and device ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_another_dtype_than_the_weight(dtype):
    layer = sf.SymmetricConv2d(4, 8, 3, symmetry="h")
    with pytest.raises(
        RuntimeError, match=rf"Input type \({str(dtype)[6:]}\) and weight type \(float32\) should be"
    ):
        layer(X.to(dtype))
    with pytest.raises(RuntimeError):
        layer.to_conv()(X.to(dtype))
    with pytest.raises(RuntimeError, match=r"Input type \(float32\) and bias type \(float64\)"):
        SF.symmetric_conv2d(X, W, torch.randn(16, dtype=torch.float64), symmetry="hv")


def test_another_device_than_the_weight():
    layer = sf.SymmetricConv2d(4, 8, 3, symmetry="h")
    with pytest.raises(RuntimeError, match=r"same device.* meta .*cpu"):
        layer(X.to("meta"))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_unsupported_dtypes(dtype):
    x, w = X.to(dtype), W.to(dtype)
    with pytest.raises(
        TypeError, match=f"{str(dtype)[6:]} is not supported; supported dtypes: float16, bfloat16"
    ):
        SF.symmetric_conv2d(x, w, symmetry="hv")
    with pytest.raises(TypeError, match="supported dtypes"):
        SF.symmetric_conv2d(x, W, symmetry="hv")
    with pytest.raises(TypeError, match="supported dtypes"):
        SF.symmetric_conv2d(X, w, symmetry="hv")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_quantised_tensors():
    x = torch.quantize_per_tensor(X, 0.1, 0, torch.quint8)
    with pytest.raises(TypeError, match="quint8 is not supported; supported dtypes: float16"):
        SF.symmetric_conv2d(x, W, symmetry="hv")


# --- sizes ---------------------------------------------------------------------------------------------------------


def test_kernel_larger_than_the_padded_input():
    layer = sf.SymmetricConv2d(4, 8, 5, symmetry="h", dilation=2, padding=1)
    with pytest.raises(RuntimeError, match=r"\[8, 8\]; kernel size \(dilated\): \[9, 9\].*can't be greater"):
        layer(X)
    with pytest.raises(RuntimeError):
        layer.to_conv()(X)


@pytest.mark.parametrize(
    ("name", "value"),
    [("stride", 0), ("stride", -1), ("padding", -1), ("dilation", 0), ("groups", 0), ("groups", -1)],
)
def test_integers_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        SF.symmetric_conv2d(X, W, symmetry="hv", **{name: value})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"stride": (1, 2, 3)}, "stride=.* must be an int or 2 ints"),
        ({"padding": "full"}, "padding='full' is not valid; give ints, 'same' or 'valid'"),
        ({"padding": "same", "stride": 2}, "padding='same' is not supported for strided"),
    ],
)
def test_integers_of_other_forms(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SF.symmetric_conv2d(X, W, symmetry="hv", **kwargs)


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
@pytest.mark.parametrize(
    "value", [1.5, None, (1.0, 1.0), (1.0,), (1, None), ("1", "1"), torch.tensor(0.5), object()]
)
def test_what_is_no_integer_is_named(name, value):
    message = rf"^{name}={re.escape(repr(value))} must be an int or a tuple of ints, such as {name}=1"
    with pytest.raises(TypeError, match=message):
        SF.symmetric_conv2d(X, W, symmetry="hv", **{name: value})
    with pytest.raises(TypeError, match=message):
        SF.symmetric_conv_transpose2d(X, W, symmetry="hv", **{name: value})
    for cls in (sf.SymmetricConv2d, sf.SymmetricConvTranspose2d):
        with pytest.raises(TypeError, match=message):
            cls(4, 8, 3, symmetry="hv", **{name: value})


@pytest.mark.parametrize("name", ["stride", "dilation"])
def test_text_is_no_integer(name):
    with pytest.raises(TypeError, match=f"{name}='1' must be an int or a tuple of ints"):
        SF.symmetric_conv2d(X, W, symmetry="hv", **{name: "1"})
    with pytest.raises(TypeError, match=f"{name}='1' must be an int or a tuple of ints"):
        sf.SymmetricConv2d(4, 8, 3, symmetry="hv", **{name: "1"})


def test_the_other_integers_of_a_layer_are_named():
    for name in ("in_channels", "out_channels", "kernel_size", "groups"):
        arguments = {"in_channels": 4, "out_channels": 8, "kernel_size": 3} | {name: 2.0}
        for cls in (sf.SymmetricConv2d, sf.SymmetricConvTranspose2d):
            with pytest.raises(TypeError, match=f"{name}=2.0 must be an int"):
                cls(**arguments, symmetry="h")
    with pytest.raises(TypeError, match=r"output_padding=0\.5 must be an int"):
        sf.SymmetricConvTranspose2d(4, 8, 3, output_padding=0.5, symmetry="h")
    with pytest.raises(TypeError, match=r"output_padding=0\.5 must be an int"):
        SF.symmetric_conv_transpose2d(X, W, output_padding=0.5, symmetry="hv")


@pytest.mark.parametrize("symmetry", ["hv", Symmetry("hv").resolve(2, 16)])
@pytest.mark.parametrize("groups", [1.0, "1", None, True, (1,)])
def test_groups_that_are_no_integer(groups, symmetry):
    with pytest.raises(TypeError, match=re.escape(f"groups={groups!r} must be a positive int, such as 1")):
        SF.symmetric_conv2d(X, W, groups=groups, symmetry=symmetry)


def test_integers_of_numpy_are_integers():
    one, plain = np.int64(1), SF.symmetric_conv2d(X, W, stride=1, groups=1, symmetry="hv")
    for stride in (one, (one, one), np.array([1, 1]), torch.tensor([1, 1]), [1, 1]):
        assert torch.equal(SF.symmetric_conv2d(X, W, stride=stride, groups=one, symmetry="hv"), plain)


@pytest.mark.parametrize("activation", [["relu"], "elu", 1, torch.relu])
def test_activations_that_do_not_exist(activation):
    message = re.escape(f"activation={activation!r} is not valid; give None, 'relu', 'silu' or 'gelu'")
    with pytest.raises(ValueError, match=message):
        SF.symmetric_conv2d(X, W, symmetry="hv", activation=activation)


def test_output_padding_as_large_as_the_stride():
    with pytest.raises(RuntimeError, match=r"output_padding=.* must be smaller"):
        SF.symmetric_conv_transpose2d(X, W, stride=2, output_padding=2, symmetry="hv")


@pytest.mark.parametrize("cls", [sf.SymmetricConv2d, sf.SymmetricConvTranspose2d])
def test_empty_batch_gives_an_empty_result_with_gradients(cls):
    layer = cls(4, 8, 3, symmetry="h")
    x = torch.randn(0, 4, 6, 6, requires_grad=True)
    y = layer(x)
    assert y.shape == layer.to_conv()(x).shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    for parameter in layer.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_unbatched_input_works():
    layer = sf.SymmetricConv2d(4, 8, 3, symmetry="h")
    torch.testing.assert_close(layer(X[0]), layer(X)[0])


# --- strides -------------------------------------------------------------------------------------------------------


def test_no_layout_is_refused():
    layer = sf.SymmetricConv2d(4, 8, 3, symmetry="hv", dtype=torch.float64)
    x = torch.randn(4, 6, 7, 4, dtype=torch.float64)
    variants = [
        x.permute(0, 3, 1, 2),
        x.permute(3, 0, 1, 2)[:, :4],
        x[:, ::2].permute(0, 3, 1, 2),
        x[..., :1].permute(0, 3, 1, 2).expand(4, 4, 6, 7),
        x[0].permute(2, 0, 1)[None].expand(3, -1, -1, -1),
        torch.complex(x, x).conj().imag.permute(0, 3, 1, 2),  # a view whose sign bit is set
        torch._neg_view(x.permute(0, 3, 1, 2)),
    ]
    assert variants[-2].is_neg()
    for v in variants:
        reference = F.conv2d(v, layer.expanded_weight(), layer.bias)
        torch.testing.assert_close(layer(v), reference)
        with torch.no_grad():
            torch.testing.assert_close(layer(v), reference)


# --- forward mode, and the operators themselves --------------------------------------------------------------------


def test_forward_mode_says_so():
    layer = sf.SymmetricConv2d(4, 8, 3, symmetry="h")
    with pytest.raises(
        NotImplementedError, match="does not implement forward-mode automatic differentiation"
    ):
        torch.func.jvp(layer, (X,), (X,))


def test_operators_called_directly_check_what_they_are_given():
    """A kernel works with raw addresses: whatever reaches an operator must have been checked."""
    static = ((3, 4), (1, 1), (0, 0), (1, 1), (0, 0), False, 1, False)
    gy = torch.randn(2, 16, 4, 4)
    with pytest.raises(
        ValueError, match=r"expected grad_output of shape \[2, 16, 4, 4\], got \[2, 16, 4, 5\]"
    ):
        ops.dgrad(torch.randn(2, 16, 4, 5), W, [2, 4, 6, 6], *static)
    with pytest.raises(ValueError, match="expected grad_output"):
        ops.wgrad(gy[:1], X, [4, 4, 3, 3], *static)
    with pytest.raises(ValueError, match="expected grad_output"):
        ops.dgrad(gy, W, [2, 4, 7, 6], *static)
    with pytest.raises(ValueError, match="expected input of shape"):
        ops.dgrad(gy, W, [2, 4, 6], *static)
    with pytest.raises(ValueError, match="rows of weight"):
        ops.wgrad(gy, X, [5, 4, 3, 3], *static)
    with pytest.raises(ValueError, match=r"bias of shape \(16,\)"):
        ops.fprop(X, W, torch.randn(4), *static)
    with pytest.raises(ValueError, match="stride="):
        ops.fprop(X, W, None, (3, 4), (1,), *static[2:])


def test_constructor_arguments_of_torch_are_checked_by_torch():
    for cls, plain in ((sf.SymmetricConv2d, nn.Conv2d), (sf.SymmetricConvTranspose2d, nn.ConvTranspose2d)):
        for bad in ({"groups": 3}, {"padding_mode": "mirror"}, {"groups": 0}):
            with pytest.raises(ValueError) as expected:  # noqa: PT011
                plain(4, 8, 3, **bad)
            with pytest.raises(ValueError, match=re.escape(str(expected.value).removesuffix(plain.__name__))):
                cls(4, 8, 3, symmetry="h", **bad)
