#!/usr/bin/env bash
# Everything that a machine with a GPU is needed for, in one command and without a network, the most valuable first.
#
#   bench/gpu.sh [--minutes N] [--out DIR] [--only STEP,STEP] [--rehearse]
#
#   --minutes N   end within about N minutes (default 30): what no longer fits is left out, and said
#   --out DIR     where rows and logs go (default build/gpu, of a rehearsal build/gpu-rehearsal); rows are written as
#                 they are measured
#   --only A,B    only these steps
#   --rehearse    every step end to end on a CPU with tiny sizes, the Triton kernels interpreted: no GPU is needed,
#                 and no number that comes out means anything
#
# Steps: facts cuda answers rivals memory smoke baseline fold rate tests tune models sanitize build full
# In 10 minutes: whether each CUDA kernel is right, and how fast it is beside Triton and cuDNN.
# Uses the current python3 with the torch, triton and pytest that it has. Ends with a table of the steps; the exit code
# is 1 if one of them failed or measured nothing, or if time ran out in a rehearsal, 0 otherwise; 2, at once, where there
# is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.."

minutes=30 out="" only="" rehearse=0
usage() { sed -n '2,17s/^# \{0,1\}//p' "$0"; exit 2; }
while [ $# -gt 0 ]; do
  case "$1" in
    --minutes) minutes=${2:?--minutes needs a number}; shift 2 ;;
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --only) only=${2:?--only needs names of steps}; shift 2 ;;
    --rehearse) rehearse=1; shift ;;
    *) usage ;;
  esac
done
case "$minutes" in ''|*[!0-9]*) echo "--minutes $minutes is not a whole number; give for example --minutes 30" >&2; exit 2 ;; esac

python=${PYTHON:-python3}
if [ $rehearse -eq 0 ] && ! $python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "bench/gpu.sh: $python has no torch that finds a GPU here. All of this needs one; --rehearse runs it on a CPU." >&2
  exit 2
fi
if [ -z "$out" ]; then
  out=build/gpu
  [ $rehearse -eq 0 ] || out=build/gpu-rehearsal
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
rows=$out/rows.jsonl steps=$out/steps.tsv
: >"$steps"
failed=0 deadline=$(($(date +%s) + minutes * 60))
export python out rows rehearse deadline PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

if [ $rehearse -eq 1 ]; then
  export SYMCONV_FAST_REHEARSE=1 TRITON_INTERPRET=1 OMP_NUM_THREADS=1
  export device=cpu
else
  export device=cuda
fi

left() { echo $((deadline - $(date +%s))); }

length() { if [ -f "$1" ]; then wc -l <"$1"; else echo 0; fi; }

# step NAME SECONDS FILE COMMAND...: run it with its output in NAME.log, for at most SECONDS and what time is left.
# Unless FILE is "-", it must have added lines to FILE when it ends by itself.
step() {
  local name=$1 most=$2 file=$3 rest code before began=$SECONDS
  shift 3
  if [ -n "$only" ] && [[ ",$only," != *",$name,"* ]]; then return; fi
  rest=$(left)
  if [ "$rest" -lt 15 ]; then
    printf '%s\tno time left\t0\n' "$name" >>"$steps"
    [ $rehearse -eq 0 ] || failed=1
    return
  fi
  [ "$rest" -lt "$most" ] && most=$rest
  before=$(length "$file")
  echo "== $name (at most $most s): $*"
  timeout --kill-after=10 "$most" bash -c '"$@"' step "$@" >"$out/$name.log" 2>&1
  code=$?
  case $code in
    0)
      code=ok
      if [ "$file" != - ] && [ "$(length "$file")" -le "$before" ]; then code="FAILED (no rows)" failed=1; fi
      ;;
    124 | 137)
      code="time is up"
      [ $rehearse -eq 0 ] || failed=1 # tiny sizes take seconds: it did not rehearse what it is for
      ;;
    *) code="FAILED ($code)"; failed=1 ;;
  esac
  tail -n 4 "$out/$name.log"
  printf '%s\t%s\t%d\n' "$name" "$code" $((SECONDS - began)) >>"$steps"
}

tests() { # tests FILTER: the gpu tests, on all cores where pytest-xdist is there: most of their time is compiling
  local parallel=()
  [ $rehearse -eq 0 ] && $python -c 'import xdist' 2>/dev/null && parallel=(-n "$(nproc)")
  $python -m pytest tests/test_gpu.py -q ${parallel[@]+"${parallel[@]}"} -k "$1"
}

measure() { # measure MINUTES FILES ARGUMENTS...: a part of the benchmark, rows appended
  local part=$1 files=$2
  shift 2
  if [ $rehearse -eq 1 ]; then set -- "$@" --rehearse; fi
  $python -m pytest "$files" -q -p no:cacheprovider --device "$device" --minutes "$part" --out "$rows" "$@"
}

facts() {
  $python - <<'PY'
import platform, torch
print("python", platform.python_version(), "torch", torch.__version__, "cuda", torch.version.cuda, "cudnn", torch.backends.cudnn.version())
for i in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_properties(i))
PY
  nvidia-smi 2>/dev/null || echo "no nvidia-smi"
  nvcc --version 2>/dev/null | tail -n 2
  if [ $rehearse -eq 1 ]; then unset TRITON_INTERPRET; fi # hundreds of problems; the steps below interpret a few
  $python -m symconv_fast
}

cuda() { # the CUDA module for the GPU that is here; where there is no nvcc, what was built elsewhere must run on it
  if [ $rehearse -eq 1 ]; then $python tools/cuda_build.py --help; return; fi
  if $python tools/cuda_build.py --keep --table; then return; fi
  $python - <<'PY'
import sys, torch
from symconv_fast.backends.cuda import native
capability = torch.cuda.get_device_capability()
print(native.module().info())
sys.exit(not native.built_for(capability))
PY
}

answers() { # answers ARGUMENTS...: every CUDA kernel on known problems
  if [ $rehearse -eq 1 ]; then set -- "$@" --stand-in --few 1 --only tile,fprop,bfloat16; fi
  $python tests/cuda_answers.py "$@"
}

memory() { # the same under each tool of compute-sanitizer, whose findings end a process with code 9
  local tool code=0
  if ! sanitizer; then echo "no compute-sanitizer here"; return; fi
  for tool in $sanitizer_tools; do
    echo "-- $tool"
    set -- compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 9 --kernel-name kns=symconv $python
    if [ $rehearse -eq 1 ]; then set -- $python; fi
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 COMMAND="$*" answers --few 2 --seconds 60 || code=1
  done
  return $code
}

rivals() { # CUDA kernels, Triton's and cuDNN, layer by layer
  local more=(--minutes 5 --answers "$out/answers.jsonl")
  if [ $rehearse -eq 1 ]; then more=(--tiny); fi
  $python -m bench.rivals "${more[@]}" --rows "$out/rivals.jsonl"
}

build() { # the native CPU module for the torch that is here; the package works without it
  local more=()
  if [ $rehearse -eq 1 ]; then more=(--help); fi # takes the command line apart and builds nothing
  SYMCONV_FAST_NO_CUDA=1 $python setup.py -q build_ext --inplace ${more[@]+"${more[@]}"}
}

rate() {
  local more=() code=0
  if [ $rehearse -eq 1 ]; then more=(--compile-only); fi
  $python -m bench.micro.wgmma_rate ${more[@]+"${more[@]}"} --rows "$out/wgmma_rate.jsonl" || code=$?
  [ $code -eq 3 ] || return $code # 3: there is no nvcc
}

sanitizer() { # is there compute-sanitizer? A rehearsal only runs the programs that it is given
  sanitizer_tools="memcheck initcheck racecheck synccheck"
  if [ $rehearse -eq 1 ]; then
    sanitizer_tools=memcheck
    compute-sanitizer() {
      while [ "$1" != "$python" ]; do shift; done
      "$@"
    }
  fi
  command -v compute-sanitizer >/dev/null
}

sanitize() { # each tool of compute-sanitizer over the smallest tests; torch's allocator would hide what is past an end
  local tool code=0
  if ! sanitizer; then echo "no compute-sanitizer here"; return; fi
  for tool in $sanitizer_tools; do
    echo "-- $tool"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $tool --error-exitcode 9 --kernel-name kns=fprop \
      --kernel-name kns=dgrad --kernel-name kns=wgrad --kernel-name kns=fold --kernel-name kns=reduce \
      $python -m pytest tests/test_gpu.py -q -k "smoke and triton and bfloat16" || code=1
  done
  return $code
}

tune() {
  local arguments=(--device $device --rows "$out/tune.jsonl" --table "$out/tuned.py")
  if [ $rehearse -eq 1 ]; then arguments+=(--tiny); else arguments+=(--minutes $(($(left) / 120 + 1))); fi
  $python -m bench.tune "${arguments[@]}"
}

export -f left tests measure facts cuda answers memory rivals build rate sanitizer sanitize tune
quick=(--dtypes bfloat16 --layouts channels_last)
step facts 60 - facts
step cuda 240 - cuda
step answers 150 "$out/answers.jsonl" answers --rows "$out/answers.jsonl" --seconds 100
step rivals 330 "$out/rivals.jsonl" rivals
step memory 120 - memory
step smoke 150 - tests smoke
step baseline 420 "$rows" measure 6 bench "${quick[@]}"
step fold 420 "$rows" measure 6 bench "${quick[@]}" --backend triton --algorithm fold
step rate 120 - rate
step tests 600 - tests "not smoke"
step tune 900 "$out/tune.jsonl" tune
step models 300 "$rows" measure 4 bench/bench_models.py --dtypes bfloat16
step sanitize 600 - sanitize
step build 300 - build
step full 3600 "$rows" measure $(($(left) / 60 + 1)) bench --full

echo
column -t -s $'\t' "$steps" 2>/dev/null || cat "$steps"
echo "rows and logs: $out"
exit $failed
