# Building the CUDA module: what is compiled for which GPU, what stands in the way, and what was built.

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import cuda_build
import cuda_host
import cuda_nvcc
import cuda_report
import cuda_sources
import native_build
import pytest

ROOT = Path(__file__).resolve().parent.parent
TINY = Path(__file__).parent / "cuda_tiny"

# Answers as nvcc does, writes down every command, and "compiles": FAULT and FAIL make it print and fail.
NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release ${FAKE_VERSION:-13.0}, V13.0.88"; exit 0 ;;
  --list-gpu-arch) printf 'compute_%s\\n' ${FAKE_ARCHES:-80 86 89 90 100 120}; exit 0 ;;
  --help) echo "--static-global-template-stub {true|false}"; exit 0 ;;
esac
echo "$@" >>"$(dirname "$0")/commands"
while [ $# -gt 0 ]; do
  case "$1" in -o) out=$2; shift ;; -MF) rule=$2; shift ;; -c) source=$2; shift ;; esac
  shift
done
case "$source" in *float.cu) [ -z "$FAKE_TEXT" ] || printf '%s\\n' "$FAKE_TEXT" >&2 ;; esac
[ -z "$FAKE_FAIL" ] || { echo "$source: error: it is a fake" >&2; exit 2; }
[ -z "$rule" ] || echo "$out: $source" >"$rule"
echo compiled >"$out"
"""
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1kv' for 'sm_80'
ptxas info    : Function properties for _Z1kv
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 126 registers, used 1 barriers, 400 bytes cmem[0]
"""
SPILLS = REPORT.replace("0 bytes spill stores, 0", "8 bytes spill stores, 4")
SERIAL = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized"


@pytest.fixture
def nvcc(tmp_path, monkeypatch) -> Path:
    """A compiler on the PATH that takes no time, and no GPU."""
    fake = tmp_path / "cuda" / "nvcc"
    fake.parent.mkdir()
    fake.write_text(NVCC)
    fake.chmod(0o755)
    smi = fake.with_name("nvidia-smi")
    smi.write_text("#!/bin/sh\nexit 9\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    for name in ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "SYMCONV_FAST_NO_CUDA"):
        monkeypatch.delenv(name, raising=False)
    return fake


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """The sources with nothing but the tiny family, in a folder of their own."""
    root = tmp_path / "source"
    sources = root / "csrc" / "cuda"
    shutil.copytree(ROOT / "csrc/cuda/host", sources / "host")
    for name in ("device.h", "launch.h", "types.h", "module.cpp"):
        shutil.copy(ROOT / "csrc/cuda" / name, sources)
    shutil.copytree(TINY, sources / "tiny")
    (root / "symconv_fast").mkdir()
    shutil.copy(ROOT / "symconv_fast/_version.py", root / "symconv_fast")
    monkeypatch.setattr(cuda_build, "ROOT", root)
    return root


def commands(nvcc: Path) -> dict[str, str]:
    """What the fake was asked to compile, by file, and what to link."""
    found = {}
    for line in (nvcc.parent / "commands").read_text().splitlines():
        parts = line.split()
        found[Path(parts[parts.index("-c") + 1]).name if "-c" in parts else "link"] = line
    return found


def test_every_instantiation_is_a_file_for_every_architecture(nvcc, copy, monkeypatch, capfd):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0a;10.0+PTX")
    target = copy / "symconv_fast/_cuda.so"
    cuda_build.build(target)
    assert target.read_text() == "compiled\n"
    asked = commands(nvcc)
    assert set(asked) == {"module.cpp", "tiny.cu", "tiny_sixteen.cu", "tiny_float.cu", "link"}
    flags = (
        "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a "
        "-gencode=arch=compute_100,code=[sm_100,compute_100]"
    )
    for name in ("tiny.cu", "tiny_float.cu"):
        assert flags in asked[name]
        assert "-static-global-template-stub=false" in asked[name]
    assert "-cudart=static" in asked["link"]
    assert "rpath" not in asked["link"]
    generated = copy / "build/cuda/generated"
    text = (generated / "tiny_float.cu").read_text()
    assert '#line 3 "' in text
    assert "tiny_kernel<symconv::Float32>" in text
    assert (generated / "tiny/instances.h").read_text().count("extern template __global__") == 3
    facts = (generated / "families.h").read_text()
    assert '#define SYMCONV_ARCHITECTURES "8.0 9.0a 10.0+PTX"' in facts
    assert "F(tiny, TinyParams, TINY_FIELDS)" in facts
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("the CUDA module, for 8.0 9.0a 10.0+PTX, with ")
    assert lines[1].startswith("compiling 4 of 4 files")
    (nvcc.parent / "commands").unlink()
    cuda_build.build(target)
    assert not (nvcc.parent / "commands").exists()  # neither compiled nor linked again


@pytest.mark.parametrize("all_of_it", [False, True])
def test_what_is_for_hopper_alone_is_left_out_without_it(nvcc, copy, monkeypatch, all_of_it):
    lines = copy / "csrc/cuda/tiny/instances.txt"
    text = lines.read_text().replace("float | all", "float | 90a")
    lines.write_text(text.replace("| all |", "| 90a |") if all_of_it else text)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0")
    cuda_build.build(copy / "symconv_fast/_cuda.so")
    asked = commands(nvcc)
    assert set(asked) == {"module.cpp", "link"} | (set() if all_of_it else {"tiny.cu", "tiny_sixteen.cu"})
    assert "-DSYMCONV_HOPPER=0" in asked["module.cpp"]
    facts = (copy / "build/cuda/generated/families.h").read_text()
    assert 'SYMCONV_LEFT_OUT "kernels for 9.0a of tiny"' in facts
    assert ("TinyParams" in facts) != all_of_it
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0a")
    cuda_build.build(copy / "symconv_fast/_cuda.so")
    asked = commands(nvcc)
    assert asked["tiny_float.cu"].count("-gencode") == 1
    assert "code=sm_90a" in asked["tiny_float.cu"]
    assert asked["tiny.cu"].count("-gencode") == (1 if all_of_it else 2)


@pytest.mark.parametrize(("text", "fault"), [(SPILLS, "12 bytes are spilled"), (SERIAL, "C7510")])
def test_slow_kernels_are_said_and_fail_a_strict_build(nvcc, copy, monkeypatch, capfd, text, fault):
    monkeypatch.setenv("FAKE_TEXT", text)
    target = copy / "symconv_fast/_cuda.so"
    cuda_build.build(target)
    assert target.exists()
    assert fault in capfd.readouterr().err
    with pytest.raises(
        native_build.CompileError, match="1 faults"
    ):  # of an object that is not compiled again
        cuda_build.build(target, strict=True)
    assert f"fault: {'_Z1kv (sm_80): ' if 'spilled' in fault else ''}" in capfd.readouterr().err
    assert not target.exists()


def test_a_build_that_fails_shows_why_and_leaves_no_module(nvcc, copy, monkeypatch, capfd):
    target = copy / "symconv_fast/_cuda.so"
    target.write_text("of another day")
    monkeypatch.setenv("FAKE_FAIL", "1")
    with pytest.raises(native_build.CompileError, match="the compiler ended with code 2"):
        cuda_build.build(target)
    assert "error: it is a fake" in capfd.readouterr().err
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FAKE_FAIL", "was not built: .*code 2; everything else works without it"),
        ("SYMCONV_FAST_NO_CUDA", "left out: SYMCONV_FAST_NO_CUDA is set"),
        ("NO_GPU", "left out: there is no GPU here"),
    ],
)
def test_make_goes_on_without_the_module(nvcc, copy, monkeypatch, capfd, name, said):
    nvcc.with_name("nvidia-smi").write_text('#!/bin/sh\n[ -z "$NO_GPU" ] && echo 8.0\n')
    (target := copy / "symconv_fast/_cuda.so").touch()
    monkeypatch.setattr(cuda_build, "TARGET", target)
    monkeypatch.setattr(cuda_build.build, "__defaults__", (target, False, False))
    monkeypatch.setenv(name, "1")
    assert cuda_build.main(["--if-gpu"]) == 0
    assert re.search(said, capfd.readouterr().out.splitlines()[-1])
    assert not target.exists()


def test_reports_are_read_and_kept_from_users():
    (kernel,) = cuda_report.kernels(REPORT)
    assert kernel == cuda_report.Kernel("_Z1kv", "sm_80", registers=126, spills=0, stack=16)
    assert cuda_report.faults([REPORT]) == []
    assert cuda_report.faults([REPORT, REPORT]) == ["_Z1kv (sm_80): compiled by 2 files"]
    assert cuda_report.faults([REPORT, REPORT.replace("sm_80", "sm_90a")]) == []
    assert cuda_report.shown(REPORT) == ""
    assert cuda_report.shown(REPORT + "x.cu(3): warning: odd\n") == "x.cu(3): warning: odd"
    assert cuda_report.shown(SERIAL) == SERIAL
    assert "126" in cuda_report.table({"tiny/float": REPORT})


@pytest.mark.parametrize(
    ("asked", "names", "left_out"),
    [
        ("8.0;9.0a;10.0+PTX", "8.0 9.0a 10.0+PTX", 0),
        ("9.0 8.6, 8.0", "8.0 8.6 9.0", 0),
        ("Ampere", "8.0 8.6+PTX", 0),
        ("Hopper", "9.0a", 0),
        ("7.0;Turing;8.0", "8.0", 2),
        ("8.0;13.7+PTX", "8.0", 1),
        ("8.0;8.0+PTX", "8.0+PTX", 0),
    ],
)
def test_architectures_are_in_the_syntax_of_torch(nvcc, asked, names, left_out):
    chosen, sentences = cuda_nvcc.architectures(asked, cuda_nvcc.find())
    assert " ".join(map(str, chosen)) == names
    assert len(sentences) == left_out


def test_an_older_nvcc_leaves_its_ptx_for_gpus_that_it_does_not_know(nvcc, monkeypatch):
    monkeypatch.setenv("FAKE_ARCHES", "80 86 89 90")
    chosen, sentences = cuda_nvcc.architectures(cuda_nvcc.asked(), cuda_nvcc.find())
    assert " ".join(map(str, chosen)) == "8.0+PTX 9.0a"
    assert sentences == ["10.0+PTX: CUDA 13.0 does not know it"]


@pytest.mark.parametrize(
    ("asked", "said"), [("all", "'all'"), ("7.5", "8.0 or newer"), ("99.0", "not know it")]
)
def test_a_list_of_nothing_is_refused(nvcc, asked, said):
    with pytest.raises(cuda_nvcc.UnavailableError, match=said):
        cuda_nvcc.architectures(asked, cuda_nvcc.find())


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        ("9.0\n9.0\n", "9.0a"),
        ("12.0\n8.9\n", "8.9;12.0"),
        ("[N/A]\n", cuda_nvcc.DEFAULT),
        (None, cuda_nvcc.DEFAULT),
    ],
)
def test_the_gpu_that_is_here_is_compiled_for(nvcc, monkeypatch, answer, asked):
    if answer is not None:
        nvcc.with_name("nvidia-smi").write_text(f"#!/bin/sh\nprintf '{answer}'\n")
    assert cuda_nvcc.asked() == asked
    assert cuda_nvcc.asked(everywhere=True) == cuda_nvcc.DEFAULT
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    assert cuda_nvcc.asked(everywhere=True) == "8.0"


def test_an_nvcc_that_is_too_old_or_broken_is_not_used(nvcc, monkeypatch):
    monkeypatch.setenv("FAKE_VERSION", "11.8")
    with pytest.raises(cuda_nvcc.UnavailableError, match=r"is of CUDA 11\.8; 12\.0 is the first"):
        cuda_nvcc.find()
    nvcc.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(cuda_nvcc.UnavailableError, match="ends with code 3"):
        cuda_nvcc.find()


def test_cuda_home_goes_before_the_path(nvcc, tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    shutil.copy(nvcc, home / "bin")
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert cuda_nvcc.find().path == str(home / "bin/nvcc")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a | all", "a line is NAME"),
        ("a b | all | template x;", "'a b' is not a name"),
        ("a | 80 | template x;", "not '80'"),
        ("a | all | extern x;", "begins with 'template'"),
        ("a | all | template x", "ends with ';'"),
        ("a | all | template x;\na | all | template y;", "stands there twice"),
        ("# nothing", "no instantiation"),
    ],
)
def test_lines_that_are_not_understood_are_named(tmp_path, line, said):
    path = tmp_path / "instances.txt"
    path.write_text(line + "\n")
    with pytest.raises(cuda_sources.SourceError, match=said) as error:
        cuda_sources.read(path)
    assert str(path) in str(error.value)


def test_every_family_is_complete():
    """What the build derives from a folder's name is there, and each line compiles a kernel of its own."""
    for family in cuda_sources.families(ROOT / "csrc/cuda"):
        params = (family.folder / "params.h").read_text()
        for wanted in (family.params, f"{family.name.upper()}_FIELDS", f"{family.name}_variants"):
            assert wanted in params, family.name
        assert family.launchers, family.name
        assert (family.folder / "kernels.cuh").exists()
        every = [s.split("(")[0] for i in family.instances for s in cuda_sources.statements(i.text)]
        assert len(every) == len(set(every)), family.name


# --- setup.py --------------------------------------------------------------------------------------------------------


def run_setup(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """setup.py of a copy, without the CPU module, which needs no torch."""
    for tool in (ROOT / "tools").glob("*.py"):
        (root / "tools").mkdir(exist_ok=True)
        shutil.copy(tool, root / "tools")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    ignore = shutil.ignore_patterns("*.so")
    shutil.copytree(ROOT / "symconv_fast", root / "symconv_fast", ignore=ignore, dirs_exist_ok=True)
    env = {**os.environ, "SYMCONV_FAST_NO_CPU": "1", "SYMCONV_FAST_NO_CUDA": "0", **environment}
    done = subprocess.run(
        [sys.executable, "setup.py", *arguments], cwd=root, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_wheel_with_the_module_is_for_this_platform(nvcc, copy):
    run_setup(copy, "bdist_wheel")
    (wheel,) = (copy / "dist").glob("*.whl")
    assert wheel.stem.endswith(sysconfig.get_platform().replace("-", "_").replace(".", "_"))
    with zipfile.ZipFile(wheel) as packed:
        assert f"symconv_fast/_cuda{cuda_build.SUFFIX}" in packed.namelist()
    assert "code=sm_90a" in commands(nvcc)["tiny_float.cu"]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"FAKE_FAIL": "1"}, "compiling it failed"),
        ({"FAKE_VERSION": "11.4"}, "is of CUDA 11.4"),
        ({"TORCH_CUDA_ARCH_LIST": "sm_90"}, "TORCH_CUDA_ARCH_LIST has 'sm_90'"),
        ({"SYMCONV_FAST_NO_CUDA": "1"}, ""),
    ],
)
def test_installs_without_the_module_and_says_why(nvcc, copy, environment, said):
    if said:  # of another nvcc
        place = f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/symconv_fast"
        (copy / place).mkdir(parents=True)
        (copy / place / f"_cuda{cuda_build.SUFFIX}").write_text("stale")
    done = run_setup(copy, "-q", "build", **environment)
    assert done.stderr.count("without the native CUDA module") == (1 if said else 0)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((copy / "build").rglob("_cuda*.so"))
    assert list((copy / "build").rglob("dispatch.py"))


# --- the binding -------------------------------------------------------------------------------------------------


def test_the_binding_names_what_is_wrong_with_parameters():
    module = cuda_host.module()
    for name in module.info()["families"]:
        params = getattr(module, f"{name.capitalize()}Params")
        fields = dict.fromkeys(params.FIELDS, 0)
        first, *_ = fields
        with pytest.raises(TypeError, match=f"{name.capitalize()}Params: missing {first}; unknown odd"):
            params(odd=1, **{k: v for k, v in fields.items() if k != first})
        for value in (0.5, None, 1 << 70):
            with pytest.raises(TypeError, match=f"{first} must be an integer of 64 bits"):
                params(**fields | {first: value})
        number = {field: i for i, field in enumerate(params.FIELDS)}
        made = params(**number)
        assert {field: getattr(made, field) for field in params.FIELDS} == number
        with pytest.raises(AttributeError):
            setattr(made, first, 1)
        for value in (0, -1, 1 << 40):  # nothing that anybody meant; it must be refused, not crash
            wrong = params(**dict.fromkeys(params.FIELDS, value))
            if value:
                assert wrong.check()
            if wrong.check():
                assert wrong.launch(0, 0, 0, 0, 0, 0, 0) == wrong.check()
    for variant in module.variants():
        assert set(variant) == {"family", "name", "arch", "threads", "shared_bytes", "ctas"}


@pytest.mark.full
def test_the_tiny_family_runs_on_the_stand_in(copy, tmp_path):
    """All that a family needs, in the fewest lines, from instances.txt to a result."""
    target = tmp_path / f"{cuda_build.HOST_MODULE}{cuda_build.SUFFIX}"
    built = cuda_build.build_host(target, copy / "csrc/cuda")
    script = Path(__file__).parent / "cuda_tiny" / "run.py"
    done = subprocess.run([sys.executable, str(script), str(built)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
