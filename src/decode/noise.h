#pragma once

#include <cstdint>

namespace bicached {

/// The randomness of one position in one forward: uniform in [0, 1), a pure function of its
/// arguments. The same seed gives the same text whatever else runs in the batch.
inline double counter_uniform(uint64_t seed, uint64_t forward, uint64_t position) {
  // splitmix64's finalizer (Steele, Lea, Flood 2014) as a hash, one round an input.
  const auto mix = [](uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
  };
  constexpr uint64_t kStep = 0x9e3779b97f4a7c15ull;
  const uint64_t bits = mix(mix(mix(seed + kStep) + forward + kStep) + position + kStep);
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

}  // namespace bicached
