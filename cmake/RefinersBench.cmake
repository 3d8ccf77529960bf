# refiners_benchmarks(): the executable refiners_bench, one suite per file of benchmarks/ops:
#
#   bench_<op>_kernel.cpp   calls the kernels themselves, without torch
#   bench_<op>.cpp          compares the operator with what torch does; left out where there is no torch
#
# Helpers of a suite stand next to it as <op>_*.cpp.

function(refiners_benchmarks)
  set(folder ${PROJECT_SOURCE_DIR}/benchmarks/ops)
  file(GLOB files CONFIGURE_DEPENDS ${folder}/*.cpp)
  set(kernel_files ${files})
  list(FILTER kernel_files INCLUDE REGEX "(/main|_kernel)\\.cpp$")
  get_property(ops GLOBAL PROPERTY REFINERS_OPS)
  add_executable(refiners_bench ${kernel_files})
  refiners_compile_options(refiners_bench)
  target_include_directories(refiners_bench PRIVATE ${PROJECT_SOURCE_DIR}/csrc ${PROJECT_SOURCE_DIR}/benchmarks/ops)
  target_compile_definitions(refiners_bench PRIVATE REFINERS_SHAPES_FOLDER="${REFINERS_SHAPES_FOLDER}")
  target_link_libraries(refiners_bench PRIVATE refiners_harness ${ops})
  set_target_properties(refiners_bench PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})
  if(NOT REFINERS_HAS_TORCH)
    return()
  endif()
  list(REMOVE_ITEM files ${kernel_files})
  target_sources(refiners_bench PRIVATE ${files})
  target_link_libraries(refiners_bench PRIVATE refiners_torch)
  target_compile_definitions(refiners_bench PRIVATE REFINERS_OPS_LIBRARY="$<TARGET_FILE:refiners_ops>")
  add_dependencies(refiners_bench refiners_ops)
  if(REFINERS_HAS_CUDA)
    target_compile_definitions(refiners_bench PRIVATE REFINERS_HAS_CUDA)
  endif()
endfunction()
