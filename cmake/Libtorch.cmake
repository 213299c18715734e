# libtorch as the pip wheel holds it. find_package(Torch) of a CUDA wheel would need a CUDA toolkit,
# which a machine that only serves does not have, and adds run paths that don't exist.
if(SKBUILD) # pip's build: the torch of the environment that it builds in
  execute_process(COMMAND "${Python_EXECUTABLE}" -c
                          "import importlib.util; print(importlib.util.find_spec('torch').submodule_search_locations[0])"
                  OUTPUT_VARIABLE torch_dirs OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT EXISTS "${LIBTORCH_ROOT}/lib")
    unset(LIBTORCH_ROOT CACHE) # that of an earlier build's environment, which is gone
  endif()
else()
  file(GLOB torch_dirs "${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch")
endif()
set(LIBTORCH_ROOT "${torch_dirs}" CACHE PATH "The torch package (holds include/ and lib/)")
# Not cached: another LIBTORCH_ROOT must not link libraries of the one before.
find_library(C10_LIBRARY c10 HINTS "${LIBTORCH_ROOT}/lib" NO_DEFAULT_PATH NO_CACHE REQUIRED)
find_library(TORCH_CPU_LIBRARY torch_cpu HINTS "${LIBTORCH_ROOT}/lib" NO_DEFAULT_PATH NO_CACHE REQUIRED)
find_library(TORCH_CUDA_LIBRARY torch_cuda HINTS "${LIBTORCH_ROOT}/lib" NO_DEFAULT_PATH NO_CACHE)
find_library(C10_CUDA_LIBRARY c10_cuda HINTS "${LIBTORCH_ROOT}/lib" NO_DEFAULT_PATH NO_CACHE)
add_library(bicached_libtorch INTERFACE)
target_include_directories(bicached_libtorch SYSTEM INTERFACE "${LIBTORCH_ROOT}/include")
target_link_libraries(bicached_libtorch INTERFACE "${TORCH_CPU_LIBRARY}" "${C10_LIBRARY}")
if(TORCH_CUDA_LIBRARY) # registers the CUDA kernels; no symbol of it is referred to
  target_link_libraries(bicached_libtorch INTERFACE -Wl,--no-as-needed "${TORCH_CUDA_LIBRARY}" "${C10_CUDA_LIBRARY}"
                                                    -Wl,--as-needed)
endif()
# at::parallel_for is a template: compiled without OpenMP it runs on one thread. Clang's OpenMP is
# another library than libtorch's, so that what Clang builds is slower.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  find_library(GOMP_LIBRARY NAMES gomp libgomp.so.1 HINTS "${LIBTORCH_ROOT}/lib" NO_DEFAULT_PATH NO_CACHE)
  if(NOT GOMP_LIBRARY)
    set(GOMP_LIBRARY gomp)
  endif()
  target_compile_options(bicached_libtorch INTERFACE -fopenmp)
  target_link_libraries(bicached_libtorch INTERFACE "${GOMP_LIBRARY}")
endif()
