# Warnings, sanitizers, and the instruction set of a file: what every target of ours is compiled with.

if(REFINERS_SANITIZE AND NOT REFINERS_SANITIZE MATCHES "^(address|undefined|thread|address,undefined)$")
  message(FATAL_ERROR "REFINERS_SANITIZE must be address, undefined, thread or address,undefined; "
                      "got '${REFINERS_SANITIZE}'")
endif()

# Flags by suffix; the same rule as in setup.py.
set(REFINERS_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(REFINERS_FLAGS_avx512 ${REFINERS_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC's own AVX512 header initializes a variable with itself, on purpose (GCC bug 105593).
  list(APPEND REFINERS_FLAGS_avx512 -Wno-uninitialized -Wno-maybe-uninitialized)
endif()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(REFINERS_X86 ON)
else()
  set(REFINERS_X86 OFF)
endif()

# refiners_compile_options(<target>): warnings and the chosen sanitizer.
function(refiners_compile_options target)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra>)
  if(REFINERS_SANITIZE)
    # -O1: with a sanitizer, -O3 takes minutes for the unrolled kernels.
    target_compile_options(
      ${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${REFINERS_SANITIZE} -fno-sanitize-recover=all
                        -fno-omit-frame-pointer -g -O1>)
    target_link_options(${target} PUBLIC -fsanitize=${REFINERS_SANITIZE})
  endif()
endfunction()

# refiners_isa_files(<variable> <file>...): keeps the files that this processor family can run, each with its flags.
function(refiners_isa_files variable)
  set(kept)
  foreach(file IN LISTS ARGN)
    if(file MATCHES "_(avx2|avx512)\\.cpp$")
      if(NOT REFINERS_X86)
        continue()
      endif()
      set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${REFINERS_FLAGS_${CMAKE_MATCH_1}}")
    endif()
    list(APPEND kept ${file})
  endforeach()
  set(${variable} ${kept} PARENT_SCOPE)
endfunction()
