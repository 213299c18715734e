#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <bit>
#include <fstream>
#include <iterator>
#include <sstream>

#include "base/hash.h"
#include "base/machine_limits.h"
#include "bicached/error.h"
#include "bicached/load.h"
#include "config/engine_defaults.h"
#include "config/model_folder.h"
#include "denoise/torch_denoiser.h"
#include "model/cuda/cuda_runtime.h"
#include "model/torch_errors.h"

namespace bicached {
namespace {

/// Of a card, as measured on an H200 with CUDA 13: the context with libtorch's own kernels; what
/// the first forwards add, which is modules and work space of the libraries of products, and
/// graphs.
constexpr int64_t kContextBytes = int64_t{512} << 20, kLibraryBytes = int64_t{512} << 20;
constexpr int64_t kMaxCpuPoolBytes = 2LL << 30;  // room for long canvases of a batch, not a hog

/// Throws kInvalidSettings where the card that is asked for is not there.
at::Device choose_device(const ModelSettings& settings) {
  const int count = at::hasCUDA() ? c10::impl::VirtualGuardImpl(at::kCUDA).deviceCount() : 0;
  if (settings.device == "cpu" || (settings.device == "auto" && count == 0)) return at::kCPU;
  const size_t colon = settings.device.find(':');
  const int card = colon == std::string::npos ? 0 : std::stoi(settings.device.substr(colon + 1));
  if (card < count) return {at::kCUDA, static_cast<c10::DeviceIndex>(card)};
  std::string there;
  for (int i = 0; i < count; ++i) {
    there +=
        (i > 0 ? ", cuda:" : "cuda:") + std::to_string(i) + " (" + CudaRuntime::get().name(i) + ")";
  }
  throw Error(ErrorCode::kInvalidSettings,
              "device is " + settings.device + "; " +
                  (count == 0 ? "this build of libtorch sees no CUDA device; use cpu or auto"
                              : "the CUDA devices are " + there),
              "device");
}

/// By what Linux says of it: AVX512-BF16 or AMX. On other CPUs bfloat16 is slower than float32.
bool cpu_multiplies_bfloat16() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line);
    return std::any_of(std::istream_iterator<std::string>(words), {}, [](const std::string& word) {
      return word == "avx512_bf16" || word == "amx_bf16";
    });
  }
  return false;
}

/// auto: bfloat16 where the device multiplies it natively, else float32.
at::ScalarType choose_dtype(const ModelSettings& settings, at::Device device) {
  if (settings.dtype == "float32") return at::kFloat;
  if (settings.dtype == "bfloat16") return at::kBFloat16;
  return device.is_cuda() || cpu_multiplies_bfloat16() ? at::kBFloat16 : at::kFloat;
}

/// What of the machine keeps weights from being float8; empty: nothing does.
std::string missing_for_fp8(at::Device device, at::ScalarType dtype) {
  if (!device.is_cuda()) return "a CUDA card; the device is " + device.str();
  if (dtype != at::kBFloat16) return "dtype bfloat16; it is float32";
  const int capability = CudaRuntime::get().compute_capability(device.index());
  if (capability >= CudaRuntime::kFloat8Capability) return "";
  return "compute capability 8.9 or more; this card has " + std::to_string(capability / 10) + "." +
         std::to_string(capability % 10);
}

/// Whether the layers' matrices are float8: if that is asked for, and where the checkpoint has them
/// so and the card multiplies them. Throws kInvalidSettings where what is asked for is not
/// possible.
bool choose_fp8(const ModelSettings& settings, const Checkpoint& checkpoint, at::Device device,
                at::ScalarType dtype) {
  if (settings.weights == "bfloat16" && dtype != at::kBFloat16) {
    throw Error(ErrorCode::kInvalidSettings,
                "weights is bfloat16, but dtype is float32; use weights auto or dtype bfloat16",
                "weights");
  }
  if (settings.weights == "bfloat16") return false;
  const std::string missing = missing_for_fp8(device, dtype);
  if (settings.weights == "fp8" && !missing.empty()) {
    throw Error(ErrorCode::kInvalidSettings, "weights is fp8, which needs " + missing, "weights");
  }
  const bool is_float8 = std::ranges::any_of(
      checkpoint.tensors(), [](const auto& named) { return named.second.dtype == kFloat8; });
  return settings.weights == "fp8" || (is_float8 && missing.empty());
}

/// What loading has given back counts as free.
int64_t free_device_bytes(at::Device device) {
  c10::DeviceAllocator* allocator = c10::getDeviceAllocator(device.type());
  allocator->emptyCache();
  return static_cast<int64_t>(allocator->getMemoryInfo(device.index()).first);
}

ModelInfo describe(const ModelSettings& settings, const ParsedModel& model,
                   const Checkpoint& checkpoint, at::Device device, at::ScalarType dtype,
                   bool fp8) {
  const ModelConfig& config = model.config;
  ModelInfo info;
  info.family = model.family->name;
  info.name = model_name(settings.path);
  info.device = device.str();
  info.dtype = dtype == at::kFloat ? "float32" : "bfloat16";
  info.num_layers = config.num_layers;
  info.hidden_size = config.hidden_size;
  info.num_heads = config.num_heads;
  info.num_kv_heads = config.num_kv_heads;
  info.head_size = config.head_size;
  info.vocab_size = config.vocab_size;
  info.num_logits = config.num_logits;
  info.num_experts = config.experts.num_experts;
  info.experts_per_token = config.experts.num_chosen;
  info.max_length = config.max_length;
  info.mask_token = config.mask_token;
  info.end_tokens = config.end_tokens;
  info.start_token = config.start_token;
  info.logits_shift = model.family->logits_shift;
  info.decoder = model.family->decoder;
  info.attention_block = config.attention_block;
  if (config.attention_block > 0) info.decoder.block_length = config.attention_block;
  info.chat_template = model.family->chat_template;
  info.num_parameters = check_tensors(checkpoint, model);
  info.weight_bytes = weight_bytes(model, dtype, fp8);
  info.kv_bytes_per_token = KvPool::bytes_per_token(config, dtype);
  info.forward_bytes_per_row = PackedForward::bytes_per_row(config, dtype, fp8);
  if (device.is_cuda()) {
    info.device_bytes = CudaRuntime::get().memory_bytes(device.index());
    info.runtime_bytes = kContextBytes + kLibraryBytes +
                         TorchDenoiser::logits_bytes(config.num_logits, config.max_length);
  }
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

/// Tokens of the KV pool: the budget, or what is free and nothing else needs (on a CPU a share of
/// it); at least one longest canvas.
int64_t pool_tokens(const ModelSettings& settings, const ModelInfo& info, at::Device device,
                    const DeviceRoom& room) {
  int64_t bytes = settings.kv_cache_bytes;
  if (bytes == 0 && device.is_cuda()) {
    const int64_t others =
        info.runtime_bytes - kContextBytes + forward_bytes(info, room.max_rows) + room.entry_bytes;
    bytes = std::max<int64_t>(0, free_device_bytes(device) - others);
  } else if (bytes == 0) {
    bytes = std::min(read_machine_limits().free_memory_bytes / 4, kMaxCpuPoolBytes);
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

int64_t forward_bytes(const ModelInfo& model, int max_rows) {
  EngineSettings engine;
  engine.max_rows_per_forward = max_rows;
  max_rows = resolve_engine_defaults(engine, model).max_rows_per_forward;
  // A model may claim canvases of a hundred thousand positions. Room for the rare one that long is
  // better used by others; it takes what stored prefixes leave.
  const int longest = std::min(model.max_length, 4 * max_rows);
  const auto rows = static_cast<uint64_t>(std::max(max_rows, longest));  // buffers double
  return static_cast<int64_t>(std::bit_ceil(rows)) * model.forward_bytes_per_row;
}

ModelInfo inspect_model(const ModelSettings& settings) {
  const ParsedModel model = parse_model_folder(settings.path);
  const Checkpoint checkpoint = Checkpoint::open(settings.path);
  const at::Device device = choose_device(settings);
  const at::ScalarType dtype = choose_dtype(settings, device);
  return describe(settings, model, checkpoint, device, dtype,
                  choose_fp8(settings, checkpoint, device, dtype));
}

std::unique_ptr<Denoiser> load_denoiser(const ModelSettings& settings, const LoadProgress& progress,
                                        const DeviceRoom& room) {
  const c10::InferenceMode mode;
  at::set_num_threads(choose_num_threads(settings.num_threads));
  const ParsedModel model = parse_model_folder(settings.path);
  const Checkpoint checkpoint = Checkpoint::open(settings.path);
  const at::Device device = choose_device(settings);
  const at::ScalarType dtype = choose_dtype(settings, device);
  const bool fp8 = choose_fp8(settings, checkpoint, device, dtype);
  const ModelInfo info = describe(settings, model, checkpoint, device, dtype, fp8);
  return with_torch_errors("loading the model", [&] {
    ModelWeights weights = load_weights(checkpoint, model, device, dtype, fp8, progress);
    const int64_t capacity = pool_tokens(settings, info, device, room);
    return std::make_unique<TorchDenoiser>(info, model.config, std::move(weights), capacity,
                                           settings.cuda_graphs);
  });
}

}  // namespace bicached
