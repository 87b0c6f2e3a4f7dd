# The published TensorFlow 1 layers in numpy, float64, position by position, written from their description.
from __future__ import annotations

import numpy as np
import torch

ORBIT = {"h": 2, "v": 2, "hv": 4, "nonsym": 1}
COUNTS = {
    "h": {"h": 4},
    "v": {"v": 4},
    "hv": {"hv": 8},
    "free": {"nonsym": 3},
    "h and free": {"h": 4, "nonsym": 1},
    "equal h and v": {"h": 4, "v": 4, "hv": 4, "nonsym": 2},
    "more h": {"h": 6, "v": 2, "hv": 4, "nonsym": 1},
    "more v": {"h": 2, "v": 6, "nonsym": 3},
}


def drawn(counts: dict[str, int], bias: str, *, kernel=(3, 3), channels=2, seed=0, dtype=np.float64):
    """Arrays by their names; `bias` is "whole", "shared" or "none"."""
    random = np.random.default_rng(seed)
    arrays = {}
    for key in ("h", "v", "hv", "nonsym"):
        if key in counts:
            name = "kernel_nonsym" if key == "nonsym" else f"kernel_sym_{key}"
            arrays[name] = random.standard_normal((*kernel, channels, counts[key] // ORBIT[key])).astype(
                dtype
            )
    if bias == "whole":
        arrays["bias"] = random.standard_normal(sum(counts.values())).astype(dtype)
    for key in ("v", "h", "hv", "nonsym") if bias == "shared" else ():
        if key in counts:
            arrays[f"bias_{key}"] = random.standard_normal(counts[key] // ORBIT[key]).astype(dtype)
    return arrays


def full_kernel(arrays):
    """(KH, KW, C, filters) of theirs: h, mirrored h, v, mirrored v, four of hv, free."""
    parts = []
    if "kernel_sym_h" in arrays:
        k = arrays["kernel_sym_h"]
        parts += [k, k[:, ::-1]]
    if "kernel_sym_v" in arrays:
        k = arrays["kernel_sym_v"]
        parts += [k, k[::-1]]
    if "kernel_sym_hv" in arrays:
        k = arrays["kernel_sym_hv"]
        parts += [k, k[:, ::-1], k[::-1], k[::-1, ::-1]]
    if "kernel_nonsym" in arrays:
        parts.append(arrays["kernel_nonsym"])
    return np.concatenate(parts, -1)


def full_bias(arrays):
    """(filters,) of theirs, to be added to the channels of `full_kernel` as they are; shared: v, h, hv, free."""
    if "bias" in arrays:
        return arrays["bias"]
    parts = [
        np.concatenate([arrays[f"bias_{key}"]] * ORBIT[key])
        for key in ("v", "h", "hv", "nonsym")
        if f"bias_{key}" in arrays
    ]
    return np.concatenate(parts) if parts else 0.0


def tf_conv(x, kernel, bias=0.0, stride=(1, 1), padding="valid", dilation=(1, 1)):
    """(N, H, W, C) with (KH, KW, C, F): position by position, zeros where a tap is outside."""
    n, height, width, _ = x.shape
    kh, kw, _, filters = kernel.shape
    reach = (dilation[0] * (kh - 1) + 1, dilation[1] * (kw - 1) + 1)
    if padding == "same":
        out = (-(-height // stride[0]), -(-width // stride[1]))
        missing = [max((o - 1) * s + r - m, 0) for o, s, r, m in zip(out, stride, reach, (height, width))]
        first = [-(m // 2) for m in missing]
    else:
        out = ((height - reach[0]) // stride[0] + 1, (width - reach[1]) // stride[1] + 1)
        first = [0, 0]
    y = np.zeros((n, *out, filters))
    for i in range(out[0]):
        for j in range(out[1]):
            for a in range(kh):
                for b in range(kw):
                    row = first[0] + i * stride[0] + a * dilation[0]
                    column = first[1] + j * stride[1] + b * dilation[1]
                    if 0 <= row < height and 0 <= column < width:
                        y[:, i, j] += x[:, row, column] @ kernel[a, b]
    return y + bias


def theirs(x, arrays, **options):
    return tf_conv(x, full_kernel(arrays), full_bias(arrays), **options)


def run(module, x):
    """A torch module on (N, H, W, C), its output (N, H, W, C)."""
    with torch.no_grad():
        return module(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


def image(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape)


def assert_same(a, b) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert np.array_equal(a[name], b[name]), name


def their_global(x, arrays):
    """(N, L, C): the kernel of 2 L + 1 taps that they built, over zeros outside."""
    length = x.shape[1]
    sides = [arrays["surround"]] * length
    kernel = np.concatenate([*sides, arrays["kernel"], *sides])
    y = np.zeros((len(x), length, kernel.shape[2]))
    for i in range(length):
        for j in range(length):
            y[:, i] += x[:, j] @ kernel[length + j - i]
    return y + arrays.get("bias", 0.0)
