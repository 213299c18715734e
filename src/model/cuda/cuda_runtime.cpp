#include "model/cuda/cuda_runtime.h"

#include <c10/core/DeviceGuard.h>
#include <dlfcn.h>

#include <algorithm>

#include "bicached/error.h"

namespace bicached {
namespace {

// From the CUDA driver API's and NVRTC's documentation; results of 0 mean success.
constexpr int kMultiprocessorCount = 16, kCapabilityMajor = 75, kCapabilityMinor = 76;
constexpr int kCaptureThreadLocal = 1;

void* open_library(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
  }
  throw Error(ErrorCode::kInternal, std::string("can't open ") + *names.begin());
}

template <class Function>
void find(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  if (!function) throw Error(ErrorCode::kInternal, std::string("CUDA has no function ") + name);
}

}  // namespace

struct CudaRuntime::Functions {
  int (*initialize)(unsigned);
  int (*get_device)(int*, int);
  int (*device_name)(char*, int, int);
  int (*get_attribute)(int*, int, int);
  int (*device_memory)(size_t*, int);
  int (*error_string)(int, const char**);
  int (*load_module)(void**, const void*);
  int (*unload_module)(void*);
  int (*get_function)(void**, void*, const char*);
  int (*launch_kernel)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                       void*, void**, void**);
  int (*create_stream)(void**, unsigned);
  int (*destroy_stream)(void*);
  int (*synchronize_stream)(void*);
  int (*begin_capture)(void*, int);
  int (*end_capture)(void*, void**);
  int (*instantiate)(void**, void*, unsigned long long);
  int (*launch_graph)(void*, void*);
  int (*destroy_graph)(void*);
  int (*destroy_graph_exec)(void*);

  int (*create_program)(void**, const char*, const char*, int, const char* const*,
                        const char* const*);
  int (*compile_program)(void*, int, const char* const*);
  int (*log_size)(void*, size_t*);
  int (*log)(void*, char*);
  int (*cubin_size)(void*, size_t*);
  int (*cubin)(void*, char*);
  int (*destroy_program)(void**);

  Functions() {
    void* driver = open_library({"libcuda.so.1", "libcuda.so"});
    find(driver, "cuInit", initialize);
    find(driver, "cuDeviceGet", get_device);
    find(driver, "cuDeviceGetName", device_name);
    find(driver, "cuDeviceGetAttribute", get_attribute);
    find(driver, "cuDeviceTotalMem_v2", device_memory);
    find(driver, "cuGetErrorString", error_string);
    find(driver, "cuModuleLoadData", load_module);
    find(driver, "cuModuleUnload", unload_module);
    find(driver, "cuModuleGetFunction", get_function);
    find(driver, "cuLaunchKernel", launch_kernel);
    find(driver, "cuStreamCreate", create_stream);
    find(driver, "cuStreamDestroy_v2", destroy_stream);
    find(driver, "cuStreamSynchronize", synchronize_stream);
    find(driver, "cuStreamBeginCapture_v2", begin_capture);
    find(driver, "cuStreamEndCapture", end_capture);
    find(driver, "cuGraphInstantiateWithFlags", instantiate);
    find(driver, "cuGraphLaunch", launch_graph);
    find(driver, "cuGraphDestroy", destroy_graph);
    find(driver, "cuGraphExecDestroy", destroy_graph_exec);
    // libtorch's own library knows where the NVRTC of its CUDA version lies; a name is looked up in
    // what it depends on, too.
    void* nvrtc = open_library({"libcaffe2_nvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"});
    find(nvrtc, "nvrtcCreateProgram", create_program);
    find(nvrtc, "nvrtcCompileProgram", compile_program);
    find(nvrtc, "nvrtcGetProgramLogSize", log_size);
    find(nvrtc, "nvrtcGetProgramLog", log);
    find(nvrtc, "nvrtcGetCUBINSize", cubin_size);
    find(nvrtc, "nvrtcGetCUBIN", cubin);
    find(nvrtc, "nvrtcDestroyProgram", destroy_program);
  }
};

CudaRuntime::CudaRuntime() {
  static Functions functions;
  functions_ = &functions;
  check(functions_->initialize(0), "CUDA driver");
}

const CudaRuntime& CudaRuntime::get() {
  static const CudaRuntime runtime;
  return runtime;
}

void CudaRuntime::check(int result, const char* what) const {
  if (result == 0) return;
  const char* text = nullptr;
  functions_->error_string(result, &text);
  throw Error(ErrorCode::kInternal, std::string(what) + ": CUDA error " + std::to_string(result) +
                                        " (" + (text ? text : "unknown") + ")");
}

int CudaRuntime::device_of(int card) const {
  int device = 0;
  check(functions_->get_device(&device, card), "device");
  return device;
}

int CudaRuntime::attribute(int card, int which) const {
  int value = 0;
  check(functions_->get_attribute(&value, which, device_of(card)), "device attribute");
  return value;
}

std::string CudaRuntime::name(int card) const {
  char text[256] = "";
  check(functions_->device_name(text, sizeof text, device_of(card)), "device name");
  return text;
}

int CudaRuntime::compute_capability(int card) const {
  return attribute(card, kCapabilityMajor) * 10 + attribute(card, kCapabilityMinor);
}

int CudaRuntime::num_multiprocessors(int card) const {
  return attribute(card, kMultiprocessorCount);
}

int64_t CudaRuntime::memory_bytes(int card) const {
  size_t bytes = 0;
  check(functions_->device_memory(&bytes, device_of(card)), "device memory");
  return static_cast<int64_t>(bytes);
}

void* CudaRuntime::compile(const std::string& source, const std::vector<std::string>& options,
                           int card) const {
  std::vector<std::string> all = options;
  all.push_back("-arch=sm_" + std::to_string(compute_capability(card)));
  all.emplace_back("-std=c++17");
  all.emplace_back("-default-device");  // else the code of a generic lambda is the host's
  std::vector<const char*> arguments;
  for (const std::string& option : all) arguments.push_back(option.c_str());

  void* program = nullptr;
  int result = functions_->create_program(&program, source.c_str(), "kernels", 0, nullptr, nullptr);
  std::string text, binary;
  if (result == 0) {
    result =
        functions_->compile_program(program, static_cast<int>(arguments.size()), arguments.data());
    size_t size = 0;
    if (functions_->log_size(program, &size) == 0 && size > 1) {
      text.resize(size);
      functions_->log(program, text.data());
    }
    if (result == 0 && functions_->cubin_size(program, &size) == 0) {
      binary.resize(size);
      result = functions_->cubin(program, binary.data());
    }
    functions_->destroy_program(&program);
  }
  if (result != 0 || binary.empty()) {
    throw Error(ErrorCode::kInternal, "CUDA kernels don't compile (NVRTC error " +
                                          std::to_string(result) + "): " + text.substr(0, 4000));
  }
  void* module = nullptr;
  check(functions_->load_module(&module, binary.data()), "CUDA kernels can't be loaded");
  return module;
}

void* CudaRuntime::kernel(void* module, const char* name) const {
  void* function = nullptr;
  check(functions_->get_function(&function, module, name), name);
  return function;
}

void CudaRuntime::unload(void* module) const noexcept { functions_->unload_module(module); }

void CudaRuntime::launch(void* kernel, void* stream, CudaGrid grid, int block,
                         void** arguments) const {
  check(
      functions_->launch_kernel(kernel, static_cast<unsigned>(grid.x),
                                static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z),
                                static_cast<unsigned>(block), 1, 1, 0, stream, arguments, nullptr),
      "kernel launch");
}

bool CudaRuntime::is_broken(void* stream) const {
  return functions_->synchronize_stream(stream) != 0;
}

void* CudaRuntime::create_stream() const {
  void* stream = nullptr;
  // Waits for the default stream and the other way round: weights were placed by that one.
  check(functions_->create_stream(&stream, 0), "stream");
  return stream;
}

void CudaRuntime::destroy_stream(void* stream) const noexcept {
  functions_->destroy_stream(stream);
}

void* CudaRuntime::capture(void* stream, const std::function<void()>& work) const {
  check(functions_->begin_capture(stream, kCaptureThreadLocal), "capture");
  void* graph = nullptr;
  try {
    work();
  } catch (...) {
    functions_->end_capture(stream, &graph);
    if (graph) functions_->destroy_graph(graph);
    throw;
  }
  check(functions_->end_capture(stream, &graph), "capture");
  void* executable = nullptr;
  const int result = functions_->instantiate(&executable, graph, 0);
  functions_->destroy_graph(graph);
  check(result, "graph");
  return executable;
}

void CudaRuntime::launch_graph(void* graph, void* stream) const {
  check(functions_->launch_graph(graph, stream), "graph launch");
}

void CudaRuntime::destroy_graph(void* graph) const noexcept {
  functions_->destroy_graph_exec(graph);
}

CudaStream::CudaStream(c10::Device card) : card_(card) {
  const c10::DeviceGuard guard(card);
  handle_ = CudaRuntime::get().create_stream();
}

CudaStream::~CudaStream() { CudaRuntime::get().destroy_stream(handle_); }

c10::Stream CudaStream::for_libtorch() const {
  // A stream that libtorch did not make is known by its handle.
  return c10::Stream(c10::Stream::UNSAFE, card_, reinterpret_cast<c10::StreamId>(handle_));
}

}  // namespace bicached
