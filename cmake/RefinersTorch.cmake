# Sets REFINERS_HAS_TORCH and defines the target refiners_torch: the headers and libraries of Python's torch.
#
# Python is asked rather than find_package(Torch): the latter ends the configuration where torch was built for a CUDA
# toolkit that this machine lacks, and what is needed here is three paths.

set(REFINERS_HAS_TORCH OFF)
if(NOT REFINERS_TORCH STREQUAL "OFF")
  find_program(REFINERS_PYTHON NAMES python3 python DOC "Python, for the location of torch")
  set(python ${REFINERS_PYTHON})
  if(PYTHON_EXECUTABLE)
    set(python ${PYTHON_EXECUTABLE})
  endif()
  execute_process(
    COMMAND ${python} -c "import os, torch
from torch.utils.cpp_extension import include_paths
print(torch.__version__, os.path.join(os.path.dirname(torch.__file__), 'lib'),
      int(torch.compiled_with_cxx11_abi()), *include_paths(), sep=';')"
    OUTPUT_VARIABLE answer OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_VARIABLE error RESULT_VARIABLE status)
  if(status EQUAL 0)
    list(POP_FRONT answer REFINERS_TORCH_VERSION torch_lib torch_abi)
    add_library(refiners_torch INTERFACE)
    target_include_directories(refiners_torch SYSTEM INTERFACE ${answer})
    target_compile_definitions(refiners_torch INTERFACE _GLIBCXX_USE_CXX11_ABI=${torch_abi})
    # libtorch registers the kernels of a CUDA build, though no symbol of it is used; what libtorch_cuda itself needs is
    # found at run time.
    target_link_directories(refiners_torch INTERFACE ${torch_lib})
    target_link_options(refiners_torch INTERFACE LINKER:--no-as-needed LINKER:--allow-shlib-undefined
                        LINKER:-rpath,${torch_lib})
    target_link_libraries(refiners_torch INTERFACE torch torch_cpu c10)
    set(REFINERS_HAS_TORCH ON)
  elseif(REFINERS_TORCH STREQUAL "ON")
    message(FATAL_ERROR "REFINERS_TORCH is ON, but '${python}' cannot import torch:\n${error}")
  endif()
endif()
message(STATUS "torch: ${REFINERS_HAS_TORCH} ${REFINERS_TORCH_VERSION}")
