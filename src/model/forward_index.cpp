#include "model/forward_index.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "model/cuda/model_kernels.h"

namespace bicached {
namespace {

/// What is read as a vector of four has to begin at a multiple of its size.
constexpr size_t kAlignment = 16;
constexpr size_t kSmallest = size_t{64} << 10;

/// Where a list stands in the buffer.
struct Place {
  size_t offset = 0;
  int64_t count = 0;
  at::ScalarType type = at::kLong;
};

class Packer {
 public:
  template <class T>
  Place add(const std::vector<T>& values) {
    bytes_.resize((bytes_.size() + kAlignment - 1) / kAlignment * kAlignment);
    const Place place{bytes_.size(), static_cast<int64_t>(values.size()),
                      sizeof(T) == 8 ? at::kLong : at::kInt};
    bytes_.resize(bytes_.size() + values.size() * sizeof(T));
    std::ranges::copy(values, reinterpret_cast<T*>(bytes_.data() + place.offset));
    return place;
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

struct AttentionPlaces {
  Place query_starts, key_starts, key_counts;
  std::optional<Place> tiles;
};

AttentionPlaces add_attention(const std::vector<AttentionSequence>& sequences, int64_t num_tiles,
                              const ModelKernels* kernels, Packer& packer) {
  std::vector<int32_t> query_starts, key_starts, key_counts;
  for (const AttentionSequence& sequence : sequences) {
    query_starts.push_back(static_cast<int32_t>(sequence.first_row));
    key_starts.push_back(static_cast<int32_t>(sequence.key_begin));
    key_counts.push_back(static_cast<int32_t>(sequence.num_keys));
  }
  const AttentionSequence end = sequences.empty() ? AttentionSequence{} : sequences.back();
  query_starts.push_back(static_cast<int32_t>(end.first_row + end.num_rows));
  key_starts.push_back(0);
  AttentionPlaces places;
  if (kernels && kernels->suits(sequences)) {
    std::vector<int32_t> tiles = attention_tiles(sequences);
    tiles.resize(std::max(static_cast<size_t>(4 * num_tiles), tiles.size()), 0);
    places.tiles = packer.add(tiles);
  }
  places.query_starts = packer.add(query_starts);
  places.key_starts = packer.add(key_starts);
  places.key_counts = packer.add(key_counts);
  return places;
}

}  // namespace

ForwardIndex IndexUploader::upload(const ForwardPlan& plan, int64_t num_tiles, bool only_wanted) {
  Packer packer;
  const std::vector<int64_t> ids(plan.tokens.begin(), plan.tokens.end());
  const Place tokens = packer.add(ids);
  std::vector<std::pair<Place, Place>> rows;
  std::vector<AttentionPlaces> attention;
  for (const LayerSegment& segment : plan.segments) {
    const Place positions = packer.add(segment.positions);
    rows.emplace_back(positions, packer.add(segment.slots));
    attention.push_back(add_attention(segment.sequences, num_tiles, kernels_, packer));
  }
  const Place wanted = packer.add(plan.wanted_rows);
  const AttentionPlaces of_wanted = add_attention(plan.wanted, 0, kernels_, packer);
  std::vector<int64_t> final_rows = plan.logit_index;
  if (!only_wanted) {
    for (int64_t& row : final_rows) row = plan.wanted_rows[static_cast<size_t>(row)];
  }
  const Place logits = packer.add(final_rows);

  const std::vector<std::byte>& bytes = packer.bytes();
  const auto size = static_cast<int64_t>(bytes.size());
  if (!buffer_.defined() || buffer_.size(0) < size) {
    const auto capacity = static_cast<int64_t>(std::max(kSmallest, 2 * bytes.size()));
    buffer_ = at::empty({capacity}, at::dtype(at::kByte).device(device_));
    ++version_;
  }
  if (device_.is_cpu()) {
    std::memcpy(buffer_.mutable_data_ptr(), bytes.data(), bytes.size());
  } else {
    // A new host buffer each time: libtorch keeps it until the copy has read it.
    const at::Tensor host = at::empty({size}, at::dtype(at::kByte).pinned_memory(true));
    std::memcpy(host.mutable_data_ptr(), bytes.data(), bytes.size());
    buffer_.narrow(0, 0, size).copy_(host, /*non_blocking=*/true);
  }

  const auto tensor = [&](const Place& place) {
    const auto width = static_cast<int64_t>(c10::elementSize(place.type));
    return buffer_.narrow(0, static_cast<int64_t>(place.offset), place.count * width)
        .view(place.type);
  };
  const auto attention_of = [&](const std::vector<AttentionSequence>& sequences,
                                const AttentionPlaces& places) {
    AttentionIndex index;
    index.sequences = sequences;
    index.query_starts = tensor(places.query_starts);
    index.key_starts = tensor(places.key_starts);
    index.key_counts = tensor(places.key_counts);
    if (places.tiles) index.tiles = tensor(*places.tiles).view({-1, 4});
    for (const AttentionSequence& sequence : sequences) {
      index.max_rows = std::max(index.max_rows, sequence.num_rows);
      index.max_keys = std::max(index.max_keys, sequence.num_keys);
    }
    return index;
  };
  ForwardIndex index;
  index.tokens = tensor(tokens);
  for (size_t i = 0; i < plan.segments.size(); ++i) {
    index.segments.push_back({{tensor(rows[i].first), tensor(rows[i].second)},
                              attention_of(plan.segments[i].sequences, attention[i])});
  }
  index.wanted_rows = tensor(wanted);
  index.wanted_attention = attention_of(plan.wanted, of_wanted);
  index.logit_rows = tensor(logits);
  return index;
}

}  // namespace bicached
