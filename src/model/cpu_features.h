#pragma once

namespace bicached {

/// Whether this CPU multiplies bfloat16 natively (AVX512-BF16, AMX), by what Linux says of it. On
/// others bfloat16 is slower than float32. Reads a file: not for inner loops.
bool cpu_multiplies_bfloat16();

}  // namespace bicached
