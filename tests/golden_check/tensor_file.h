#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

/// All tensors of a golden safetensors file, on the CPU. The files are ours: no validation.
inline std::map<std::string, at::Tensor> read_tensors(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  file.exceptions(std::ios::failbit | std::ios::badbit);
  uint64_t header_bytes = 0;
  file.read(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes);
  std::string header(header_bytes, ' ');
  file.read(header.data(), static_cast<std::streamsize>(header_bytes));
  std::map<std::string, at::Tensor> tensors;
  const nlohmann::json parsed = nlohmann::json::parse(header);
  for (const auto& [name, about] : parsed.items()) {
    if (name == "__metadata__") continue;
    const auto begin = about["data_offsets"][0].get<std::streamoff>();
    const auto end = about["data_offsets"][1].get<std::streamoff>();
    std::string data(static_cast<size_t>(end - begin), ' ');
    file.seekg(static_cast<std::streamoff>(sizeof header_bytes + header_bytes) + begin);
    file.read(data.data(), end - begin);
    tensors[name] = at::from_blob(data.data(), about["shape"].get<std::vector<int64_t>>(),
                                  at::dtype(about["dtype"] == "I32" ? at::kInt : at::kFloat))
                        .clone();
  }
  return tensors;
}
