// model.safetensors.index.json beside two small shards, a.safetensors and b.safetensors.
#include "fuzz/fuzz_target.h"
#include "model/safetensors.h"

namespace {

std::string shard(const std::string& tensor) {
  const std::string header =
      "{\"" + tensor + R"(":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  std::string length(8, '\0');
  length[0] = static_cast<char>(header.size());
  return length + header + std::string(8, '\0');
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bicached;
  static const Folder folder;
  static const bool has_shards = [] {
    folder.write("a.safetensors", shard("a"));
    folder.write("b.safetensors", shard("b"));
    return true;
  }();
  require(has_shards, "there are shards");
  folder.write("model.safetensors.index.json", text_of(data, size));
  refuse_or([&] { Checkpoint::open(folder.path()); });
  return 0;
}
