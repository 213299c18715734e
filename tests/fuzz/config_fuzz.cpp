// config.json of a model folder.
#include "fuzz/fuzz_target.h"
#include "model/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bicached;
  static const Folder folder;
  folder.write("config.json", text_of(data, size));
  refuse_or([&] {
    const ModelConfig config = parse_model_folder(folder.path()).config;
    require(config.num_layers > 0 && config.num_heads > 0 && config.num_kv_heads > 0,
            "an accepted model has layers and heads");
    require(config.num_heads % config.num_kv_heads == 0, "heads come in groups");
  });
  return 0;
}
