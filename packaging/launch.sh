#!/bin/sh
# Starts the program of this name with the libtorch of the torch package that BICACHED_TORCH names; without it the program
# looks where the build found one.
self=$(readlink -f -- "$0")
if [ -n "${BICACHED_TORCH:-}" ]; then
  if [ ! -e "$BICACHED_TORCH/lib/libtorch_cpu.so" ]; then
    echo "bicached: BICACHED_TORCH is $BICACHED_TORCH, which has no lib/libtorch_cpu.so" >&2
    exit 2
  fi
  export LD_LIBRARY_PATH="$BICACHED_TORCH/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
unset BICACHED_TORCH # every other BICACHED_ variable is a setting
exec "${self%/bin/*}/libexec/bicached/${self##*/}" "$@"
