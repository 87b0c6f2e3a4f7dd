# nvcc: where it is, what it can compile for, and what it is asked to compile for.
"""`find` and `architectures`. What stands in the way is an `UnavailableError` with one sentence."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

DEFAULT = "8.0;9.0a;10.0+PTX"
"""Without a GPU: what runs, from Ampere on, everywhere."""
OLDEST = (12, 0)
NAMED = {
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0a",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
}
"""torch's names of generations; those before Ampere have no kernels here."""
TOO_OLD = ("Kepler", "Kepler+Tesla", "Kepler+Tegra", "Maxwell", "Maxwell+Tegra", "Pascal", "Volta", "Turing")


class UnavailableError(Exception):
    """Why the CUDA module cannot be built here, as a clause."""


@dataclass(frozen=True)
class Architecture:
    """A compute capability to compile for, and whether its PTX, for later ones, is kept too."""

    name: str  # as 8.0, or 9.0a
    ptx: bool = False

    @property
    def digits(self) -> str:
        """As nvcc writes it: 80, 90a."""
        return self.name.replace(".", "")

    @property
    def generate(self) -> str:
        """nvcc's flag for it."""
        code = f"sm_{self.digits}"
        if self.ptx:
            code = f"[{code},compute_{self.digits}]"
        return f"-gencode=arch=compute_{self.digits},code={code}"

    def __str__(self) -> str:
        return self.name + "+PTX" * self.ptx


@dataclass(frozen=True)
class Nvcc:
    """A compiler that is new enough."""

    path: str
    version: tuple[int, int]
    compiles: frozenset[str]
    """Architectures without their letter, as 80."""
    weak_stubs: bool
    """Does it know -static-global-template-stub?"""

    def can(self, architecture: Architecture) -> bool:
        """Whether it knows the architecture."""
        return architecture.digits.rstrip("af") in self.compiles


def find() -> Nvcc:
    """nvcc of the PATH, of CUDA_HOME (or CUDA_PATH), or of /usr/local/cuda.

    Raises:
        UnavailableError: there is none, or it is too old or does not run.
    """
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [f"{home}/bin" for home in homes] + [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    path = next(filter(None, (shutil.which("nvcc", path=place) for place in places)), None)
    if path is None:
        raise UnavailableError("nvcc was not found on the PATH, in CUDA_HOME or in /usr/local/cuda")
    numbers = re.search(r"release (\d+)\.(\d+)", _answer(path, "--version"))
    if numbers is None:
        raise UnavailableError(f"{path} does not say its version")
    version = int(numbers[1]), int(numbers[2])
    if version < OLDEST:
        raise UnavailableError(
            f"{path} is of CUDA {version[0]}.{version[1]}; 12.0 is the first that compiles for Hopper (sm_90a)"
        )
    known = frozenset(re.findall(r"compute_(\d+)", _answer(path, "--list-gpu-arch")))
    return Nvcc(path, version, known, "static-global-template-stub" in _answer(path, "--help"))


def _answer(path: str, question: str) -> str:
    try:
        done = subprocess.run([path, question], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{path} does not run ({error})") from None
    if done.returncode:
        raise UnavailableError(f"{path} {question} ends with code {done.returncode}")
    return done.stdout


def capabilities() -> list[str]:
    """Compute capabilities of the GPUs that are here, lowest first, as nvidia-smi says them."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = set(re.findall(r"^(\d+\.\d)\s*$", done.stdout, re.MULTILINE)) if done.returncode == 0 else set()
    return sorted(found, key=_number)


def asked(everywhere: bool = False) -> str:
    """TORCH_CUDA_ARCH_LIST; else the GPUs that are here, unless it is to run everywhere; else DEFAULT."""
    given = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    here = [] if given or everywhere else capabilities()
    # A Hopper's own instructions are in 9.0a alone.
    return given or ";".join("9.0a" if name == "9.0" else name for name in here) or DEFAULT


def architectures(text: str, nvcc: Nvcc) -> tuple[list[Architecture], list[str]]:
    """What a list in torch's syntax asks for, and a sentence about each entry that is left out.

    Raises:
        UnavailableError: an entry is not understood, or nothing is left.
    """
    for name in sorted(NAMED, key=len, reverse=True):
        text = re.sub(rf"\b{name}\b", NAMED[name], text)
    chosen: dict[str, Architecture] = {}
    left_out: list[str] = []
    for entry in filter(None, re.split(r"[;,\s]+", text)):
        match = re.fullmatch(r"(\d+\.\d[af]?)(\+PTX)?", entry)
        if entry in TOO_OLD or (match and _number(match[1]) < (8, 0)):
            left_out.append(f"{entry}: kernels need 8.0 or newer")
            continue
        if match is None:
            raise UnavailableError(f"TORCH_CUDA_ARCH_LIST has {entry!r}; entries are as in {DEFAULT!r}")
        wanted = Architecture(match[1], match[2] is not None)
        if nvcc.can(wanted):
            ptx = wanted.ptx or (wanted.name in chosen and chosen[wanted.name].ptx)
            chosen[wanted.name] = Architecture(wanted.name, ptx)
        else:
            left_out.append(f"{entry}: CUDA {nvcc.version[0]}.{nvcc.version[1]} does not know it")
    if not chosen:
        raise UnavailableError(f"no architecture is left to compile for ({'; '.join(left_out)})")
    result = sorted(chosen.values(), key=lambda a: _number(a.name))
    if text == DEFAULT and not any(a.ptx for a in result):
        result[0] = Architecture(result[0].name, True)  # later GPUs run the oldest one's PTX
    return result, left_out


def _number(name: str) -> tuple[int, int]:
    major, minor = name.rstrip("af").split(".")
    return int(major), int(minor)
