// What knows autograd, compiled as one file: torch's headers take longer to read than all of these to
// compile.
#include "operator/autograd.cpp"
#include "operator/compiled.cpp"
#include "operator/operator.cpp"
