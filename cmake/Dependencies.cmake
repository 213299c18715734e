# Every dependency as an imported or interface target. Packages first; where one is missing or too
# old, a pinned FetchContent (never with BICACHED_OFFLINE).
include(FetchContent)
find_package(PkgConfig QUIET)
find_package(Threads REQUIRED)

function(bicached_fetch name url)
  if(BICACHED_OFFLINE)
    message(FATAL_ERROR "${name} was not found (or is too old) and BICACHED_OFFLINE is on. "
                        "scripts/bootstrap installs it on Debian.")
  endif()
  message(STATUS "${name}: not found, fetching ${url}")
  FetchContent_Declare(${name} URL ${url} DOWNLOAD_EXTRACT_TIMESTAMP ON)
endfunction()

find_package(nlohmann_json 3.10 QUIET)
if(NOT nlohmann_json_FOUND)
  bicached_fetch(nlohmann_json https://github.com/nlohmann/json/archive/refs/tags/v3.11.3.tar.gz)
  FetchContent_MakeAvailable(nlohmann_json)
endif()

find_package(spdlog 1.10 QUIET)
if(NOT spdlog_FOUND)
  bicached_fetch(spdlog https://github.com/gabime/spdlog/archive/refs/tags/v1.14.1.tar.gz)
  FetchContent_MakeAvailable(spdlog)
endif()

find_package(CLI11 2.1 QUIET)
if(NOT CLI11_FOUND)
  bicached_fetch(CLI11 https://github.com/CLIUtils/CLI11/archive/refs/tags/v2.4.2.tar.gz)
  FetchContent_MakeAvailable(CLI11)
endif()

find_package(prometheus-cpp QUIET COMPONENTS core) # its package has no version file
if(NOT prometheus-cpp_FOUND)
  set(ENABLE_PUSH OFF)
  set(ENABLE_PULL OFF)
  set(ENABLE_TESTING OFF)
  bicached_fetch(prometheus-cpp https://github.com/jupp0r/prometheus-cpp/releases/download/v1.2.4/prometheus-cpp-with-submodules.tar.gz)
  FetchContent_MakeAvailable(prometheus-cpp)
endif()

# Header-only: cpp-httplib, refused before 0.41 (holes in request framing that later versions closed).
find_path(HTTPLIB_INCLUDE_DIR httplib.h HINTS "${PROJECT_SOURCE_DIR}/.deps/include")
set(httplib_version 0)
if(HTTPLIB_INCLUDE_DIR)
  file(STRINGS "${HTTPLIB_INCLUDE_DIR}/httplib.h" httplib_line REGEX "^#define CPPHTTPLIB_VERSION \"")
  string(REGEX REPLACE ".*\"([0-9.]+)\".*" "\\1" httplib_version "${httplib_line}")
endif()
if(httplib_version VERSION_LESS 0.41)
  bicached_fetch(httplib https://github.com/yhirose/cpp-httplib/archive/refs/tags/v0.53.1.tar.gz)
  FetchContent_Populate(httplib)
  set(HTTPLIB_INCLUDE_DIR "${httplib_SOURCE_DIR}" CACHE PATH "" FORCE)
endif()
add_library(bicached_httplib INTERFACE)
target_include_directories(bicached_httplib SYSTEM INTERFACE "${HTTPLIB_INCLUDE_DIR}")
target_link_libraries(bicached_httplib INTERFACE Threads::Threads)

# PCRE2 (8-bit), utf8proc, xxHash: system packages everywhere; no config packages, so pkg-config.
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
find_path(XXHASH_INCLUDE_DIR xxhash.h REQUIRED)
add_library(bicached_xxhash INTERFACE)  # header-only use (XXH_INLINE_ALL)
target_include_directories(bicached_xxhash SYSTEM INTERFACE "${XXHASH_INCLUDE_DIR}")

if(BICACHED_WITH_TORCH)
  include(Libtorch)
endif()
