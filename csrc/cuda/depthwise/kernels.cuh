// The depthwise kernels of all three passes.
#pragma once
#include "depthwise/dgrad.cuh"
#include "depthwise/fprop.cuh"
#include "depthwise/wgrad.cuh"
