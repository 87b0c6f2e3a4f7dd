# Names the Triton that belongs to the torch that is here, for pip: the environment and the table of tiles follow it.
"""python tools/triton_version.py        prints `triton==3.7.1` or the like, or nothing where none is known or needed.
python tools/triton_version.py --others      prints the versions that the package is tested with beside the one here.

A build of torch for CUDA names its Triton itself, and no other can be installed beside it. A build for CPUs names none;
there the Triton of the same torch for CUDA is taken, so that what is compiled ahead of time is what a GPU would run.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys

TRITON_OF_TORCH = {"2.11": "3.6.0", "2.13": "3.7.1"}
"""By torch's version: what its builds for CUDA ask for. These are the versions that the package is tested with."""


def named_by_torch(requires: list[str]) -> str | None:
    """`triton==X` as torch's own metadata has it, without its marker; None where it names none."""
    for requirement in requires:
        found = re.match(r"((?:pytorch-)?triton(?:-rocm|-xpu)?)\s*\(?(==[^;)\s]+)", requirement)
        if found and "extra ==" not in requirement:
            return found[1] + found[2]
    return None


def requirement(version: str, requires: list[str]) -> str:
    """What to give to pip beside a torch of this version and with these requirements; empty for nothing."""
    known = TRITON_OF_TORCH.get(".".join(version.split(".")[:2]))
    return named_by_torch(requires) or (f"triton=={known}" if known else "")


def main() -> int:
    """Print it, or with --others the tested versions that are not here. Triton is for Linux alone."""
    if "--others" in sys.argv:
        here = importlib.metadata.version("triton")
        print(*(version for version in TRITON_OF_TORCH.values() if version != here))
    elif sys.platform.startswith("linux"):
        torch = importlib.metadata.distribution("torch")
        wanted = requirement(torch.version, torch.requires or [])
        print(wanted)
        if not wanted:
            print(
                f"torch {torch.version} names no Triton and none is known for it: left as it is; "
                "without Triton the tests of its kernels are skipped",
                file=sys.stderr,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
