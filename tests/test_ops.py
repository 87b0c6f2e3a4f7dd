"""The operators: derivatives of every order, registration, transforms, layouts, FLOP counts, forward mode."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import symconv_fast
from symconv_fast import SymmetricConv2d, Symmetry, ops

# ndim, symmetry, out_channels, groups, transposed, stride, padding, dilation, kernel, spatial
CASES = {
    "1d": (1, "h", 4, 1, False, 1, 1, 1, (3,), (5,)),
    "1d stride": (1, {"h": 4}, 6, 2, False, 2, 2, 2, (2,), (6,)),
    "2d hv": (2, "hv", 4, 1, False, 1, 1, 1, (3, 3), (4, 3)),
    "2d mixed": (2, {"h": 2, "v": 2, "hv": 4}, 9, 1, False, 2, 1, 1, (3, 2), (5, 4)),
    "2d groups": (2, {"v": 4}, 6, 2, False, 1, 0, 2, (2, 3), (4, 5)),
    "2d transposed": (2, {"h": 4}, 6, 2, True, 2, 1, 1, (3, 3), (3, 3)),
    "3d hvz": (3, {"hvz": 8}, 9, 1, False, 1, 1, 1, (2, 3, 2), (3, 2, 3)),
}


def make(name: str, channels_last: bool = False, dtype: torch.dtype = torch.float64, batch: int = 2):
    """Tensors and static arguments of the operators for one case: (input, weight, bias, grad_output, static)."""
    ndim, spec, out, groups, transposed, stride, padding, dilation, kernel, spatial = CASES[name]
    ties = Symmetry(spec).resolve(ndim, out, groups)
    channels = 2 * groups
    shape = (channels, ties.unique // groups) if transposed else (ties.unique, channels // groups)
    static = (ties.flat, *[(v,) * ndim for v in (stride, padding, dilation, 0)], transposed, groups)
    static = (*static, channels_last and ndim > 1)
    x = torch.randn(batch, channels, *spatial, dtype=dtype)
    w = torch.randn(*shape, *kernel, dtype=dtype)
    if channels_last and ndim > 1:
        x = x.contiguous(memory_format=torch.channels_last if ndim == 2 else torch.channels_last_3d)
    b = torch.randn(out, dtype=dtype)
    gy = torch.randn_like(ops.fprop(x, w, b, *static))
    return x, w, b, gy, static


def expanded(name: str, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """The same by torch alone."""
    ndim, spec, out, groups, transposed, stride, padding, dilation, *_ = CASES[name]
    filters = Symmetry(spec).resolve(ndim, out, groups).expand(w, 1 if transposed else 0)
    if transposed:
        return getattr(F, f"conv_transpose{ndim}d")(x, filters, b, stride, padding, 0, groups, dilation)
    return getattr(F, f"conv{ndim}d")(x, filters, b, stride, padding, dilation, groups)


# --- derivatives ---------------------------------------------------------------------------------------------------


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize("name", CASES)
def test_gradcheck_and_gradgradcheck(name):
    x, w, b, gy, static = make(name, batch=1)
    x_size, w_size = list(x.shape), list(w.shape)
    for function, inputs in (
        (lambda x, w, b: ops.fprop(x, w, b, *static), (x, w, b)),
        (lambda gy, w: ops.dgrad(gy, w, x_size, *static), (gy, w)),
        (lambda gy, x: ops.wgrad(gy, x, w_size, *static), (gy, x)),
        (lambda gy, x: ops.wgrad_bias(gy, x, w_size, *static), (gy, x)),
        (lambda gy, x: ops.wgrad_bias(gy, x, w_size, *static)[1], (gy, x.detach())),
    ):
        assert torch.autograd.gradcheck(function, leaves(*inputs), fast_mode=True)
        assert torch.autograd.gradgradcheck(function, leaves(*inputs), fast_mode=True)


def derivative_chain(function, x: Tensor, w: Tensor) -> list[Tensor]:
    """First, second and third derivatives of a nonlinear function of the output."""
    found, value = [], function(x, w).pow(3).sum()
    for _ in range(3):
        gx, gw = torch.autograd.grad(value, [x, w], create_graph=True)
        found += [gx.detach(), gw.detach()]
        value = gx.pow(2).sum() + gw.pow(2).sum()
    return found


@pytest.mark.parametrize("name", CASES)
def test_three_orders_equal_those_of_torch(name):
    x, w, b, _, static = make(name)
    ours = derivative_chain(lambda x, w: ops.fprop(x, w, b, *static), *leaves(x, w))
    torchs = derivative_chain(lambda x, w: expanded(name, x, w, b), *leaves(x, w))
    for a, e in zip(ours, torchs):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10 * float(e.abs().max()))


class Recorded(TorchDispatchMode):
    """Names of our operators in the order of their calls."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "symconv_fast":
            self.names.append(func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        self.names: list[str] = []
        return super().__enter__()


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)))
def test_only_the_gradients_that_are_wanted_are_computed(needs):
    x, w, b, gy, static = make("2d mixed")
    tensors = [t.requires_grad_(need) for t, need in zip((x, w, b), needs)]
    with Recorded() as seen:
        y = ops.fprop(*tensors, *static)
    assert seen.names == ["fprop"]
    assert y.requires_grad == any(needs)
    if not any(needs):
        return
    with Recorded() as seen:
        y.backward(gy)
    weight = "wgrad_bias" if needs[2] else "wgrad"
    assert seen.names == [op for op, need in zip(("dgrad", weight), needs) if need]
    reference = leaves(x, w, b)
    grads = torch.autograd.grad(expanded("2d mixed", *reference), reference, gy)
    for tensor, grad, need in zip(tensors, grads, needs):
        assert (tensor.grad is not None) == need
        if need:
            torch.testing.assert_close(tensor.grad, grad)


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_saves_only_what_the_wanted_gradients_need(frozen):
    x, w, b, _, static = make("2d mixed")
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        ops.fprop(x.requires_grad_(frozen == "weight"), w.requires_grad_(frozen == "input"), b, *static)
    assert [t.data_ptr() for t in saved] == [(w if frozen == "weight" else x).data_ptr()]


def test_checkpoint():
    layer = SymmetricConv2d(2, 8, 3, padding=1, symmetry="hv", dtype=torch.float64)
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    plain = torch.autograd.grad(layer(x).sin().sum(), [x, layer.weight, layer.bias])
    y = checkpoint(lambda x: layer(x).sin(), x, use_reentrant=False)
    for a, e in zip(torch.autograd.grad(y.sum(), [x, layer.weight, layer.bias]), plain):
        assert torch.equal(a, e)


# --- registration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_opcheck(name, channels_last):
    x, w, b, gy, static = make(name, channels_last)
    grads = [t.requires_grad_() for t in (x, w, b)]
    for op, args in (
        (ops.fprop, (*grads, *static)),
        (ops.fprop, (x, w, None, *static)),
        (ops.dgrad, (gy.detach().requires_grad_(), w, list(x.shape), *static)),
        (ops.wgrad, (gy.detach().requires_grad_(), x, list(w.shape), *static)),
        (ops.wgrad_bias, (gy.detach().requires_grad_(), x, list(w.shape), *static)),
    ):
        torch.library.opcheck(op, args)


def test_opcheck_of_odd_strides_and_one_pixel():
    x, w, b, _, static = make("2d hv")
    wide = torch.randn(2, 4, 8, 6, dtype=torch.float64)[:, ::2, ::2, ::2]
    one = torch.randn(1, 2, 1, 1, dtype=torch.float64)
    flat = torch.randn(1, 2, 4, 3, dtype=torch.float64).expand(2, 2, 4, 3)
    for odd in (wide, one, flat, x.transpose(0, 1), x[:0]):
        for last in (False, True):
            torch.library.opcheck(ops.fprop, (odd, w, b, *static[:-1], last))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_results_have_the_promised_layout(name, channels_last):
    x, w, b, gy, static = make(name, channels_last)
    fmt = torch.contiguous_format
    if channels_last and x.dim() > 3:
        fmt = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    results = (
        ops.fprop(x, w, b, *static),
        ops.dgrad(gy, w, list(x.shape), *static),
        ops.wgrad(gy, x, list(w.shape), *static),
    )
    for result in results:
        assert result.is_contiguous(memory_format=fmt)


def test_no_result_aliases_an_argument():
    """Even where nothing is tied and the expansion is the weight itself."""
    x, w = torch.randn(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    static = ((0, 1), (1, 1), (0, 0), (1, 1), (0, 0), False, 1, False)
    results = (
        ops.fprop(x, w, None, *static), ops.dgrad(x, w, [1, 1, 1, 1], *static), ops.wgrad(w, x, [1, 1, 1, 1], *static),
    )  # fmt: skip
    for result in results:
        assert torch.equal(result, x)
        assert result.data_ptr() not in (x.data_ptr(), w.data_ptr())


def views(x: Tensor) -> dict[str, Tensor]:
    """The values of x in every kind of memory; the last two hold other values."""
    padded = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"), dtype=x.dtype)
    padded[..., 1::2] = x
    negated = torch._neg_view(-x)
    assert negated.is_neg()
    return {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "sliced": padded[..., 1::2],
        "transposed": x.transpose(1, 2).contiguous().transpose(1, 2),
        "negative": negated,
        "offset": torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
        "stride 0": x[:1, :, :1].expand_as(x),
        "flipped": x.flip(0),
    }


@pytest.mark.parametrize("kind", list(views(torch.zeros(1, 1, 1, 1))))
def test_any_strides_give_the_right_numbers(kind):
    x, w, b, gy, _ = make("2d mixed")
    x, w, gy = views(x)[kind], views(w)[kind], views(gy)[kind]
    layer_args = {"stride": 2, "padding": 1, "symmetry": {"h": 2, "v": 2, "hv": 4}}
    ours, torchs = leaves(x, w, b), leaves(x, w, b)
    # leaves() would make them contiguous: differentiate through the views themselves.
    ours[:2], torchs[:2] = (
        [t.detach().requires_grad_() for t in (x, w)],
        [t.detach().requires_grad_() for t in (x, w)],
    )
    y = symconv_fast.functional.symmetric_conv2d(*ours, **layer_args)
    e = expanded("2d mixed", *torchs)
    torch.testing.assert_close(y, e)
    for a, g in zip(torch.autograd.grad(y, ours, gy), torch.autograd.grad(e, torchs, gy)):
        torch.testing.assert_close(a, g)


# --- torch.func ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_vmap_over_any_argument(name):
    x, w, b, gy, static = make(name)
    stack = {
        "x": torch.stack([x, 2 * x, -x], 1),
        "w": torch.stack([w, w + 1, -w]),
        "gy": torch.stack([gy, -gy, gy], 1),
    }
    fprop = lambda x, w: ops.fprop(x, w, b, *static)  # noqa: E731
    dgrad = lambda gy, w: ops.dgrad(gy, w, list(x.shape), *static)  # noqa: E731
    wgrad = lambda gy, x: ops.wgrad(gy, x, list(w.shape), *static)  # noqa: E731
    plain = {"x": x, "w": w, "gy": gy}
    where = {"x": 1, "w": 0, "gy": 1}
    for function, names in ((fprop, "x w"), (dgrad, "gy w"), (wgrad, "gy x")):
        for batched in itertools.product((False, True), repeat=2):
            if not any(batched):
                continue
            dims = tuple(where[n] if on else None for n, on in zip(names.split(), batched))
            args = [stack[n] if on else plain[n] for n, on in zip(names.split(), batched)]
            result = torch.vmap(function, dims)(*args)
            for i in range(3):
                alone = [a if d is None else a.select(d, i) for a, d in zip(args, dims)]
                torch.testing.assert_close(result[i], function(*alone))


def test_vmap_calls_once_where_only_the_input_is_batched():
    x, w, b, _, static = make("2d hv")
    with Recorded() as seen:
        torch.vmap(lambda x: ops.fprop(x, w, b, *static))(torch.stack([x] * 5))
    assert seen.names == ["fprop"]


def test_vmap_over_the_bias():
    x, w, b, _, static = make("2d hv")
    biases = torch.stack([b, b + 1])
    result = torch.vmap(lambda b: ops.fprop(x, w, b, *static))(biases)
    torch.testing.assert_close(result[1], result[0] + 1)


def test_nested_transforms_equal_those_of_torch():
    """grad of grad of grad, Hessians, per-sample gradients: each level must see the one below."""
    x, w, b, _, static = make("2d mixed", batch=1)
    mine = lambda x: ops.fprop(x, w, b, *static).pow(3).sum()  # noqa: E731
    torchs = lambda x: expanded("2d mixed", x, w, b).pow(3).sum()  # noqa: E731
    grad, vmap, jacrev = torch.func.grad, torch.vmap, torch.func.jacrev
    second = lambda f: grad(lambda x: grad(f)(x).pow(2).sum())  # noqa: E731
    third = lambda f: grad(lambda x: second(f)(x).sin().sum())  # noqa: E731
    batch = torch.stack([x, x + 1, -x])
    for transform in (
        lambda f: grad(f)(x),
        lambda f: second(f)(x),
        lambda f: third(f)(x),
        lambda f: jacrev(jacrev(f))(x),
        lambda f: vmap(grad(f))(batch),
        lambda f: vmap(second(f))(batch),
        lambda f: grad(lambda batch: vmap(f)(batch).sum())(batch),
    ):
        expected = transform(torchs)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(transform(mine), expected)


def test_per_sample_gradients():
    layer = SymmetricConv2d(2, 8, 3, padding=1, symmetry="hv", dtype=torch.float64)
    x = torch.randn(4, 2, 5, 6, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (sample[None],)).pow(2).sum()

    parameters = dict(layer.named_parameters())
    each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    whole = torch.autograd.grad(layer(x).pow(2).sum(), list(parameters.values()))
    for name, gradient in zip(parameters, whole):
        torch.testing.assert_close(each[name].sum(0), gradient)


# --- forward mode, FLOPs, autocast ---------------------------------------------------------------------------------


def test_forward_mode_raises_and_never_gives_zeros():
    x, w, b, gy, static = make("2d hv")
    f = lambda x: ops.fprop(x, w, b, *static).pow(2).sum()  # noqa: E731
    calls = [
        lambda: torch.func.jvp(f, (x,), (x,)),
        lambda: torch.func.jvp(lambda w: ops.fprop(x, w, b, *static), (w,), (w,)),
        lambda: torch.func.jvp(lambda b: ops.fprop(x, w, b, *static), (b,), (b,)),
        lambda: torch.func.jvp(lambda g: ops.dgrad(g, w, list(x.shape), *static), (gy,), (gy,)),
        lambda: torch.func.jvp(lambda g: ops.wgrad(g, x, list(w.shape), *static), (gy,), (gy,)),
        lambda: torch.func.jacfwd(f)(x),
        lambda: torch.func.hessian(f)(x),
        lambda: torch.func.jvp(torch.func.grad(f), (x,), (x,)),
        lambda: torch.func.grad(lambda x: torch.func.jvp(f, (x,), (x,))[1])(x),
        lambda: torch.vmap(lambda t: torch.func.jvp(f, (t,), (t,))[1])(torch.stack([x, x])),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError, match="forward-mode"):
            call()


def test_forward_over_reverse_with_dual_tensors_raises():
    x, w, b, gy, static = make("2d hv")
    x.requires_grad_()
    y = ops.fprop(x, w, b, *static)
    with forward_ad.dual_level():
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.autograd.grad(y, x, forward_ad.make_dual(gy, gy))
        with torch.no_grad(), pytest.raises(NotImplementedError, match="forward-mode"):
            symconv_fast.functional.symmetric_conv2d(
                forward_ad.make_dual(x, x), w, b, padding=1, symmetry="hv"
            )
        # Without tangents everything works, dual level or not.
        torch.testing.assert_close(ops.fprop(x, w, b, *static), y)


@pytest.mark.parametrize("name", CASES)
def test_flop_counter_counts_folded_multiply_accumulates(name):
    x, w, b, _, static = make(name)
    # torch's own counter on the expanded filters, scaled by the rows that are left.
    with FlopCounterMode(display=False) as dense:
        expanded(name, x, w, b)
    with FlopCounterMode(display=False) as folded:
        y = ops.fprop(x.requires_grad_(), w.requires_grad_(), b, *static)
    out, unique = CASES[name][2], sum(static[0][1::2])
    assert folded.get_total_flops() * out == dense.get_total_flops() * unique
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 2 * folded.get_total_flops()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_in_train_and_eval(train, dtype):
    layer = SymmetricConv2d(2, 8, 3, padding=1, symmetry="hv").train(train)
    x = torch.randn(2, 2, 5, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
        expected = F.conv2d(x, layer.expanded_weight(), layer.bias, padding=1)
    assert y.dtype == expected.dtype == dtype
    # Native kernels round sums of inputs, and torch's products of each: neither is nearer to the other than that.
    allowed = 4 * torch.finfo(dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(y, expected, rtol=0, atol=allowed)
    y.float().pow(2).sum().backward()
    for tensor in (x, layer.weight, layer.bias):
        assert tensor.grad.dtype == torch.float32
        assert tensor.grad.abs().max() > 0
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        assert torch.equal(layer(x), y)
        assert (
            layer.double()(x.double()).dtype == torch.float64
        )  # autocast leaves float64 alone, as torch's does


def casts(network: torch.nn.Module, x: Tensor) -> int:
    """How often tensors go to another dtype in a step under autocast."""

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counted.append(func is torch.ops.aten._to_copy.default)
            return func(*args, **(kwargs or {}))

    counted: list[bool] = []
    with torch.autocast("cpu", dtype=torch.bfloat16), Counted():
        network(network(network(x)))
    return sum(counted)


@pytest.mark.parametrize("train", [True, False])
def test_autocast_casts_a_weight_once(train):
    """As for torch's own layer: a weight that wants a gradient is cast once for as long as autocast is on."""
    tied = SymmetricConv2d(4, 4, 3, padding=1, symmetry="h").requires_grad_(train)
    x = torch.randn(1, 4, 5, 6)
    assert casts(tied, x) == casts(torch.nn.Conv2d(4, 4, 3, padding=1).requires_grad_(train), x)


def test_calls_under_autocast_are_those_of_the_first():
    layer, x = SymmetricConv2d(4, 8, 3, padding=1, symmetry="hv"), torch.randn(1, 4, 5, 6)
    found = []
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        found.append([y.detach(), *torch.autograd.grad(y.float().pow(2).sum(), layer.parameters())])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_operator_called_under_autocast_keeps_its_dtype(device):
    x, w, b, _, static = make("2d hv", dtype=torch.float32)
    x, w, b = (t.to(device) for t in (x, w, b))
    with torch.autocast(device, dtype=torch.bfloat16):
        y = ops.fprop(x, w, b, *static)
        assert y.dtype == torch.float32
        assert ops.dgrad(y, w, list(x.shape), *static).dtype == torch.float32


@pytest.mark.parametrize("leaf", [True, False])
def test_a_gradient_that_is_not_asked_for_is_not_computed(leaf):
    layer = SymmetricConv2d(2, 8, 3, padding=1, symmetry="hv")
    start = torch.randn(2, 2, 5, 6, requires_grad=True)
    cases = {
        "start": ["dgrad"],
        "x": ["dgrad"],
        "weight": ["wgrad"],
        "bias": [],
        "x weight": ["dgrad", "wgrad"],
    }
    for wanted, names in cases.items():
        tensors = {
            "start": start,
            "x": start if leaf else start * 2,
            "weight": layer.weight,
            "bias": layer.bias,
        }
        y = layer(tensors["x"])
        with Recorded() as seen:
            torch.autograd.grad(y.sum(), [tensors[name] for name in wanted.split()])
        assert seen.names == names
    with Recorded() as seen:
        layer(start).sum().backward()
    assert seen.names[-2:] == ["dgrad", "wgrad_bias"]
