# What `cmake --install` puts under the prefix. bin/NAME is a script that starts libexec/bicached/NAME, since
# the libraries that a program loads have to be known before it runs (packaging/launch.sh).
include(GNUInstallDirs)
set(BICACHED_RPATH "${LIBTORCH_ROOT}/lib" CACHE STRING "Where the installed program looks for libtorch unless BICACHED_TORCH says")
if(SKBUILD) # the environment that the wheel is installed into has another
  set(BICACHED_RPATH "")
endif()
set_target_properties(bicached bicached-lab PROPERTIES INSTALL_RPATH "${BICACHED_RPATH}")

foreach(program bicached bicached-lab)
  install(TARGETS ${program} RUNTIME DESTINATION libexec/bicached)
  install(PROGRAMS packaging/launch.sh DESTINATION bin RENAME ${program})
endforeach()
install(DIRECTORY configs/ DESTINATION share/bicached/configs PATTERN "demo*" EXCLUDE)
install(DIRECTORY deploy/ DESTINATION share/bicached/deploy USE_SOURCE_PERMISSIONS)
install(FILES README.md CHANGELOG.md LICENSE DESTINATION share/doc/bicached)
install(DIRECTORY docs/ DESTINATION share/doc/bicached/docs)
