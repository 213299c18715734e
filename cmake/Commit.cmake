# cmake -DSOURCE=... -DHEADER=... -DCOMMIT=... -P Commit.cmake   Writes HEADER with the commit of SOURCE, where it
# changed. COMMIT, if not empty, is taken as it is: for sources without their .git.
cmake_minimum_required(VERSION 3.24)
if(NOT COMMIT)
  execute_process(COMMAND git -C "${SOURCE}" describe --always --dirty --abbrev=12 --exclude=*
                  OUTPUT_VARIABLE COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT COMMIT MATCHES "^[A-Za-z0-9._-]+$")
  set(COMMIT unknown)
endif()
file(CONFIGURE OUTPUT "${HEADER}" CONTENT "#define BICACHED_COMMIT \"@COMMIT@\"\n" @ONLY)
