"""`python -m symconv_fast.analysis MODULE:FUNCTION --size 224`: the equivariance report of a model, in a terminal."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .arguments import integer
from .equivariance import equivariance_report

EXACT, LOST, REFUSED = 0, 1, 2

DESCRIPTION = """\
Where in a model, and why, mirrors and shifts of the input stop mirroring and shifting what the layers give, and which
input sizes keep them exact. See equivariance_report."""
EPILOG = """\
exit status: 0 if the mirrors asked for are exact in every layer (or shifts, if only these are asked for), 1 if not,
2 if there is no report, with the reason on stderr.

example: python -m symconv_fast.analysis torchvision.models:resnet18 --size 224"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; the exit status is as in the help."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        torch.manual_seed(integer(given.seed, "seed", least=0, most=2**64 - 1))
        report = equivariance_report(
            _load(given.model),
            given.size,
            transforms=given.transforms,
            channels=given.channels,
            seed=given.seed,
            reach=given.reach,
        )
    except (_NoModelError, ValueError, TypeError) as failure:
        parser.exit(REFUSED, f"{parser.prog}: {failure}\n")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the rule of the table is not in every encoding
    try:
        print(report)
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXACT if report.exact else LOST


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m symconv_fast.analysis",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODULE:FUNCTION",
        help="a function or class, called without arguments, that returns a torch.nn.Module; modules are also found in "
        "the current directory",
    )
    parser.add_argument(
        "--size",
        type=_size,
        required=True,
        help="of the input: 224 for all axes, or 224x160, the first axis first",
    )
    parser.add_argument(
        "--channels", type=int, help="of the input (default: in_channels of the first convolution)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the random input and of the model (default: 0)"
    )
    parser.add_argument(
        "--transforms",
        type=lambda text: [name.strip() for name in text.split(",")],
        help="some of h,v,z,shift (default: all that the dims allow)",
    )
    parser.add_argument(
        "--reach", type=int, default=64, help="how far from --size exact sizes are searched for (default: 64)"
    )
    return parser


def _size(text: str) -> int | tuple[int, ...]:
    if not re.fullmatch(r"\d{1,6}(x\d{1,6}){0,2}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give something like 224 or 224x160")
    sizes = tuple(map(int, text.split("x")))
    return sizes if len(sizes) > 1 else sizes[0]


class _NoModelError(Exception):
    """MODULE:FUNCTION leads to no module."""


def _load(text: str) -> nn.Module:
    name, colon, attribute = (part.strip() for part in text.partition(":"))
    if not (colon and name and attribute):
        raise _NoModelError(
            f"{text!r} is not MODULE:FUNCTION; give something like torchvision.models:resnet18"
        )
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        module = re.sub(r"[/\\]+", ".", name.removesuffix(".py")).strip(".")
        near = (
            f"{module}:{attribute}"
            if module.replace(".", "").isidentifier()
            else "torchvision.models:resnet18"
        )
        raise _NoModelError(f"{name!r} is no name of a module, as import has it; give something like {near}")
    if "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _NoModelError(f"importing {name} fails: {error}") from error
        raise _NoModelError(
            f"there is no module {error.name}; it must be installed, or a file in the current directory {os.getcwd()}"
        ) from error
    except (Exception, SystemExit) as error:
        raise _NoModelError(f"importing {name} fails: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = ", ".join(
                n for n in dir(found) if not n.startswith("_") and callable(getattr(found, n, None))
            )
            raise _NoModelError(
                f"{name} has no {attribute}; it has {near[:200] or 'nothing that can be called'}"
            )
        found = getattr(found, part)
    return _build(text, found)


def _build(text: str, found: Any) -> nn.Module:
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise _NoModelError(
            f"{text} is of type {type(found).__name__}; give a function that returns a torch.nn.Module"
        )
    try:
        model = found()
    except (Exception, SystemExit) as error:
        raise _NoModelError(f"{text}() fails: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise _NoModelError(
            f"{text}() returns {type(model).__name__}; give a function that returns a torch.nn.Module"
        )
    return model


if __name__ == "__main__":
    sys.exit(main())
