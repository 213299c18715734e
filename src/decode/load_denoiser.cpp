#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/hash.h"
#include "bicached/error.h"
#include "bicached/load.h"
#include "decode/torch_denoiser.h"
#include "model/cpu_features.h"
#include "model/cuda/cuda_runtime.h"
#include "model/torch_errors.h"

namespace bicached {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxCpuPoolBytes = 2LL << 30;  // room for long canvases of a batch, not a hog

at::Device choose_device(const ModelSettings& settings) {
  const bool has_cuda = at::hasCUDA();
  if (settings.device == "cuda" && !has_cuda) {
    throw Error(ErrorCode::kInvalidSettings,
                "device: this build of libtorch sees no CUDA device; use cpu or auto", "device");
  }
  return settings.device != "cpu" && has_cuda ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
}

/// auto: bfloat16 where the device multiplies it natively (CUDA; CPUs with AVX512-BF16 or AMX),
/// else float32, which such CPUs would only be slower without.
at::ScalarType choose_dtype(const ModelSettings& settings, at::Device device) {
  if (settings.dtype == "float32") return at::kFloat;
  if (settings.dtype == "bfloat16") return at::kBFloat16;
  const bool native = device.is_cuda() || cpu_multiplies_bfloat16();
  return native ? at::kBFloat16 : at::kFloat;
}

/// Whether the layers' matrices are quantised. Throws kInvalidSettings where that is not possible.
bool choose_fp8(const ModelSettings& settings, at::Device device, at::ScalarType dtype) {
  if (settings.weights == "bfloat16" && dtype != at::kBFloat16) {
    throw Error(ErrorCode::kInvalidSettings,
                "weights is bfloat16, but dtype is float32; use weights auto or dtype bfloat16",
                "weights");
  }
  if (settings.weights != "fp8") return false;
  const std::string what = "weights is fp8, which needs ";
  if (!device.is_cuda()) {
    throw Error(ErrorCode::kInvalidSettings, what + "a CUDA card; the device is " + device.str(),
                "weights");
  }
  if (dtype != at::kBFloat16) {
    throw Error(ErrorCode::kInvalidSettings, what + "dtype bfloat16; it is float32", "weights");
  }
  const int capability = CudaRuntime::get().compute_capability();
  if (capability < 89) {
    throw Error(ErrorCode::kInvalidSettings,
                what + "compute capability 8.9 or more; this card has " +
                    std::to_string(capability / 10) + "." + std::to_string(capability % 10),
                "weights");
  }
  return true;
}

int64_t available_memory_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string name, unit;
  for (int64_t kilobytes = 0; file >> name >> kilobytes >> unit;) {
    if (name == "MemAvailable:") return kilobytes * 1024;
  }
  return kMaxCpuPoolBytes;
}

int64_t free_device_bytes(at::Device device) {
  return static_cast<int64_t>(
      c10::getDeviceAllocator(device.type())->getMemoryInfo(device.index()).first);
}

ModelInfo describe(const ModelSettings& settings, const ParsedModel& model,
                   const Checkpoint& checkpoint, at::Device device, at::ScalarType dtype,
                   bool fp8) {
  const ModelConfig& config = model.config;
  ModelInfo info;
  info.family = model.family->name;
  info.name = fs::weakly_canonical(settings.path).filename().string();
  info.device = device.str();
  info.dtype = dtype == at::kFloat ? "float32" : "bfloat16";
  info.num_layers = config.num_layers;
  info.hidden_size = config.hidden_size;
  info.num_heads = config.num_heads;
  info.num_kv_heads = config.num_kv_heads;
  info.head_size = config.head_size;
  info.vocab_size = config.vocab_size;
  info.num_logits = config.num_logits;
  info.max_length = config.max_length;
  info.mask_token = config.mask_token;
  info.end_tokens = config.end_tokens;
  info.start_token = config.start_token;
  info.logits_shift = model.family->logits_shift;
  info.decoder = model.family->decoder;
  info.chat_template = model.family->chat_template;
  info.num_parameters = check_tensors(checkpoint, model);
  info.weight_bytes = weight_bytes(config, info.num_parameters, dtype, fp8);
  info.kv_bytes_per_token = KvPool::bytes_per_token(config, dtype);
  Hasher hasher;
  hasher.add(checkpoint.fingerprint());
  for (const std::string& part :
       {info.dtype + (fp8 ? " fp8" : ""), std::to_string(config.norm_eps),
        std::to_string(config.rope_theta), std::to_string(config.num_heads),
        std::to_string(config.num_kv_heads)}) {
    hasher.add(part);
  }
  info.fingerprint = hasher.digest().hex();
  return info;
}

/// Tokens of the KV pool: the budget, or a share of free memory; at least one longest canvas.
int64_t pool_tokens(const ModelSettings& settings, const ModelInfo& info, at::Device device) {
  int64_t bytes = settings.kv_cache_bytes;
  if (bytes == 0) {
    bytes = device.is_cuda() ? free_device_bytes(device) / 10 * 8
                             : std::min(available_memory_bytes() / 4, kMaxCpuPoolBytes);
  }
  const int64_t tokens = bytes / info.kv_bytes_per_token;
  if (settings.kv_cache_bytes > 0 && tokens < 1) {
    throw Error(ErrorCode::kInvalidSettings,
                "kv_cache_bytes: " + std::to_string(settings.kv_cache_bytes) +
                    " hold no token; one takes " + std::to_string(info.kv_bytes_per_token),
                "kv_cache_bytes");
  }
  return settings.kv_cache_bytes > 0 ? tokens : std::max<int64_t>(tokens, info.max_length);
}

}  // namespace

std::vector<std::string> family_names() {
  std::vector<std::string> names;
  for (const ModelFamily& family : family_table()) names.emplace_back(family.name);
  return names;
}

ModelInfo inspect_model(const ModelSettings& settings) {
  const ParsedModel model = parse_model_folder(settings.path);
  const Checkpoint checkpoint = Checkpoint::open(settings.path);
  const at::Device device = choose_device(settings);
  const at::ScalarType dtype = choose_dtype(settings, device);
  return describe(settings, model, checkpoint, device, dtype, choose_fp8(settings, device, dtype));
}

std::unique_ptr<Denoiser> load_denoiser(const ModelSettings& settings,
                                        const LoadProgress& progress) {
  const c10::InferenceMode mode;
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  at::set_num_threads(settings.num_threads > 0 ? settings.num_threads : cores);
  const ParsedModel model = parse_model_folder(settings.path);
  const Checkpoint checkpoint = Checkpoint::open(settings.path);
  const at::Device device = choose_device(settings);
  const at::ScalarType dtype = choose_dtype(settings, device);
  const bool fp8 = choose_fp8(settings, device, dtype);
  const ModelInfo info = describe(settings, model, checkpoint, device, dtype, fp8);
  return with_torch_errors("loading the model", [&] {
    ModelWeights weights = load_weights(checkpoint, model, device, dtype, fp8, progress);
    const int64_t capacity = pool_tokens(settings, info, device);
    return std::make_unique<TorchDenoiser>(info, model.config, std::move(weights), capacity,
                                           settings.cuda_graphs);
  });
}

}  // namespace bicached
