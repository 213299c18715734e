#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <filesystem>

#include "base/hash.h"
#include "base/machine_limits.h"
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
bool choose_fp8(const ModelSettings& settings, const ModelConfig& model, at::Device device,
                at::ScalarType dtype) {
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
  if (!model.sparse_layers.empty()) {
    throw Error(ErrorCode::kInvalidSettings,
                what + "a model without experts; this one is a mixture of them", "weights");
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

int64_t free_device_bytes(at::Device device) {
  return static_cast<int64_t>(
      c10::getDeviceAllocator(device.type())->getMemoryInfo(device.index()).first);
}

/// The folder's name; in Hugging Face's cache, where that is a commit's hash, the repository's.
std::string model_name(const fs::path& folder) {
  constexpr std::string_view kRepository = "models--";
  const std::string repository = folder.parent_path().parent_path().filename().string();
  if (folder.parent_path().filename() != "snapshots" || !repository.starts_with(kRepository)) {
    return folder.filename().string();
  }
  std::string name = repository.substr(kRepository.size());
  if (const size_t at = name.find("--"); at != std::string::npos) name.replace(at, 2, "/");
  return name;
}

ModelInfo describe(const ModelSettings& settings, const ParsedModel& model,
                   const Checkpoint& checkpoint, at::Device device, at::ScalarType dtype,
                   bool fp8) {
  const ModelConfig& config = model.config;
  ModelInfo info;
  info.family = model.family->name;
  info.name = model_name(fs::weakly_canonical(settings.path));
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
  info.logits_shift = model.family->logits_shift;
  info.decoder = model.family->decoder;
  info.attention_block = config.attention_block;
  if (config.attention_block > 0) info.decoder.block_length = config.attention_block;
  info.chat_template = model.family->chat_template;
  info.num_parameters = check_tensors(checkpoint, model);
  info.weight_bytes = weight_bytes(model, dtype, fp8);
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
    bytes = device.is_cuda()
                ? free_device_bytes(device) / 10 * 8
                : std::min(read_machine_limits().free_memory_bytes / 4, kMaxCpuPoolBytes);
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
  return describe(settings, model, checkpoint, device, dtype,
                  choose_fp8(settings, model.config, device, dtype));
}

std::unique_ptr<Denoiser> load_denoiser(const ModelSettings& settings,
                                        const LoadProgress& progress) {
  const c10::InferenceMode mode;
  at::set_num_threads(choose_num_threads(settings.num_threads));
  const ParsedModel model = parse_model_folder(settings.path);
  const Checkpoint checkpoint = Checkpoint::open(settings.path);
  const at::Device device = choose_device(settings);
  const at::ScalarType dtype = choose_dtype(settings, device);
  const bool fp8 = choose_fp8(settings, model.config, device, dtype);
  const ModelInfo info = describe(settings, model, checkpoint, device, dtype, fp8);
  return with_torch_errors("loading the model", [&] {
    ModelWeights weights = load_weights(checkpoint, model, device, dtype, fp8, progress);
    const int64_t capacity = pool_tokens(settings, info, device);
    return std::make_unique<TorchDenoiser>(info, model.config, std::move(weights), capacity,
                                           settings.cuda_graphs);
  });
}

}  // namespace bicached
