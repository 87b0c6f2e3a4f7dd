// What knows tensors, compiled as one file: torch's headers take longer to read than all of these to compile.
#include "channel_order.cpp"
#include "layout_convert.cpp"
#include "native.cpp"
#include "operator/call_cache.cpp"
#include "operator/standalone.cpp"
#include "pass.cpp"
#include "workspace.cpp"
