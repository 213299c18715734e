// model.safetensors: the header is the input, behind it stand 4 KiB of numbers. An input that
// begins with '#' is the whole file.
#include "fuzz/fuzz_target.h"
#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bicached;
  static const Folder folder;
  std::string file(text_of(data, size));
  if (file.starts_with('#')) {
    file.erase(0, 1);
  } else {
    std::string length(8, '\0');
    for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(uint64_t{size} >> (8 * i));
    file.insert(0, length);
    file.append(4096, '\0');
  }
  folder.write("model.safetensors", file);
  refuse_or([&] {
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    uint64_t sum = 0;  // all that is named can be read
    for (const auto& [name, tensor] : checkpoint.tensors()) {
      std::vector<std::byte> bytes(tensor.num_bytes);
      tensor.read(0, bytes);
      for (const std::byte byte : bytes) sum += static_cast<uint64_t>(byte);
    }
    require(sum <= file.size() * 255 * (checkpoint.tensors().size() + 1), "bytes are bytes");
    checkpoint.fingerprint();
  });
  return 0;
}
