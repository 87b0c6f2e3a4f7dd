// A program without Python that runs a packaged model: LIBRARY PACKAGE INPUT OUTPUT SIZE..., numbers as raw float32.
// Then it differentiates an operator, and calls one as it should not be called.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/ones.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <fstream>
#include <iostream>
#include <string>
#include <vector>

namespace {

at::Tensor read(const std::string& path, const std::vector<int64_t>& sizes) {
  at::Tensor tensor = at::ones(sizes);
  std::ifstream(path, std::ios::binary).read(static_cast<char*>(tensor.data_ptr()), tensor.nbytes());
  return tensor;
}

void write(const std::string& path, const at::Tensor& tensor) {
  const at::Tensor plain = tensor.contiguous();
  std::ofstream(path, std::ios::binary).write(static_cast<const char*>(plain.const_data_ptr()), plain.nbytes());
}

at::Tensor fprop(const at::Tensor& input, const at::Tensor& weight) {
  static const c10::OperatorHandle op = c10::Dispatcher::singleton().findSchemaOrThrow("symconv_fast::fprop", "");
  const std::vector<int64_t> tie{1, weight.size(0)}, one{1, 1}, zero{0, 0};
  torch::jit::Stack stack{input, weight, c10::IValue(), tie, one, zero, one, zero, false, 1, false};
  op.callBoxed(stack);
  return stack[0].toTensor();
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<std::string> words(arguments + 1, arguments + count);
  if (!dlopen(words[0].c_str(), RTLD_NOW | RTLD_GLOBAL)) {
    std::cerr << dlerror() << "\n";
    return 1;
  }
  std::vector<int64_t> sizes;
  for (size_t i = 4; i < words.size(); ++i) sizes.push_back(std::stoll(words[i]));
  torch::inductor::AOTIModelPackageLoader model(words[1]);
  write(words[3], model.run({read(words[2], sizes)})[0]);

  const at::Tensor x = at::ones({1, 2, 5, 5}), w = at::ones({3, 2, 3, 3}).requires_grad_();
  const at::Tensor y = fprop(x, w);
  torch::autograd::backward({y.sum()}, {});
  std::cout << y.sizes() << " " << w.grad().sum().item<float>() << "\n";
  try {
    fprop(at::ones({1, 4, 5, 5}), w);
  } catch (const c10::Error& error) {
    std::cout << error.what_without_backtrace() << "\n";
  }
}
