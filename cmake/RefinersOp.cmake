# refiners_op(<name> [CPU] [CUDA]): build the operator of csrc/ops/<name>. Its files follow from the name, by the rule that
# setup.py uses:
#
#   <name>_cpu.cpp, <name>_cuda.cpp   bindings: the only files that know torch, through its stable ABI
#   <name>_kernel.cu                  CUDA kernels
#   every other .cpp                  CPU kernels and host code, with the flags of its suffix (_avx2, _avx512)
#
# Defines refiners_<name>, the kernels without torch, and adds the bindings to refiners_ops, the library that
# torch.ops.load_library loads, where there is torch.

# csrc/common, which every operator may use. It says which instruction sets have kernels.
function(refiners_common_library)
  if(NOT TARGET refiners_common)
    file(GLOB files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/common/*.cpp)
    add_library(refiners_common STATIC ${files})
    refiners_compile_options(refiners_common)
    target_include_directories(refiners_common PUBLIC ${PROJECT_SOURCE_DIR}/csrc)
    if(REFINERS_X86)
      target_compile_definitions(refiners_common PUBLIC REFINERS_AVX2 REFINERS_AVX512)
    endif()
  endif()
endfunction()

# One library for all operators, as in the Python package.
function(refiners_ops_library)
  if(NOT TARGET refiners_ops)
    add_library(refiners_ops MODULE)
    refiners_compile_options(refiners_ops)
    target_compile_definitions(refiners_ops PRIVATE TORCH_TARGET_VERSION=0x020b000000000000)
    target_link_libraries(refiners_ops PRIVATE refiners_torch)
  endif()
endfunction()

function(refiners_op name)
  cmake_parse_arguments(PARSE_ARGV 1 op "CPU;CUDA" "" "")
  set(folder ${PROJECT_SOURCE_DIR}/csrc/ops/${name})
  file(GLOB kernels CONFIGURE_DEPENDS ${folder}/*.cpp)
  list(FILTER kernels EXCLUDE REGEX "_(cpu|cuda)\\.cpp$")
  set(bindings)
  if(op_CPU)
    list(APPEND bindings ${folder}/${name}_cpu.cpp)
  endif()
  if(op_CUDA AND REFINERS_HAS_CUDA)
    file(GLOB cuda CONFIGURE_DEPENDS ${folder}/*_kernel.cu)
    list(APPEND kernels ${cuda})
    list(APPEND bindings ${folder}/${name}_cuda.cpp)
  endif()

  refiners_isa_files(kernels ${kernels})
  add_library(refiners_${name} STATIC ${kernels})
  refiners_compile_options(refiners_${name})
  refiners_common_library()
  target_link_libraries(refiners_${name} PUBLIC refiners_common)
  if(REFINERS_HAS_CUDA)
    target_link_libraries(refiners_${name} PUBLIC CUDA::cudart_static)
  endif()

  set_property(GLOBAL APPEND PROPERTY REFINERS_OPS refiners_${name})

  if(REFINERS_HAS_TORCH)
    refiners_ops_library()
    target_sources(refiners_ops PRIVATE ${bindings})
    target_link_libraries(refiners_ops PRIVATE refiners_${name})
    if(op_CUDA AND REFINERS_HAS_CUDA)
      target_compile_definitions(refiners_ops PRIVATE USE_CUDA)
    endif()
  endif()
endfunction()
