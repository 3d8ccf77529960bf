// The element-wise part of lora_linear for CUDA, sm_80 and newer: [x | scale · d | 0] in one pass.
//
// Computes   out[r, c] = x[r, c] for c < in; scale[a(k), r] · out[r, c] for k = c - in < rank; 0 for the padding
// Layout     rows contiguous, with any stride between them; any sizes.
// Mapping    one warp per row; lanes step over the row in packs of 16 bytes where every row starts on 16 bytes, else
//            element by element.
// Numerics   the product in fp32, rounded once; bitwise deterministic. Scales are read on the device: a captured graph
//            serves a changed one.

#include "../../common/cuda/load.cuh"
#include "lora_linear_kernel.h"

namespace refiners {
namespace {

constexpr int kWarp = 32;
constexpr int kUnroll = 4;  // loads in flight for each lane

template <class T, int kVector>
__global__ void __launch_bounds__(256) lora_linear_pack_kernel(const __grid_constant__ LoraLinearPackParams p) {
  using Vector = Pack<T, kVector>;
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= p.rows) return;
  T* out = static_cast<T*>(p.out) + row * p.out_stride;

  const Vector* from = reinterpret_cast<const Vector*>(static_cast<const T*>(p.x) + row * p.x_stride);
  Vector* to = reinterpret_cast<Vector*>(out);
  const int64_t vectors = p.in_features / kVector;
  for (int64_t v = threadIdx.x; v < vectors; v += kWarp * kUnroll) {
    Vector held[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (v + u * kWarp < vectors) held[u] = from[v + u * kWarp];
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (v + u * kWarp < vectors) to[v + u * kWarp] = held[u];
    }
  }

  T* d = out + p.in_features;
  const int64_t scale_row = row / p.rows_per_scale;
  for (int k = threadIdx.x; k < p.padded_rank; k += kWarp) {
    if (k >= p.rank) {
      d[k] = from_float<T>(0.0f);
      continue;
    }
    int adapter = 0;
    while (k >= p.column_end[adapter]) ++adapter;
    d[k] = from_float<T>(to_float(d[k]) * p.scale[adapter * p.scale_count + scale_row]);
  }
}

template <class T>
void launch(const LoraLinearPackParams& p, const LoraLinearPackConfig& config, cudaStream_t stream) {
  const dim3 block(kWarp, config.rows_per_block);
  const dim3 grid(static_cast<unsigned>((p.rows + config.rows_per_block - 1) / config.rows_per_block));
  if (config.vector == 1) {
    lora_linear_pack_kernel<T, 1><<<grid, block, 0, stream>>>(p);
  } else {
    lora_linear_pack_kernel<T, 16 / sizeof(T)><<<grid, block, 0, stream>>>(p);
  }
}

}  // namespace

cudaError_t probe_lora_linear_pack() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, lora_linear_pack_kernel<float, 1>);
  cudaGetLastError();  // what fails here is an answer, and must not be found by a later check
  return status;
}

cudaError_t launch_lora_linear_pack(const LoraLinearPackParams& p, const LoraLinearPackConfig& config,
                                    cudaStream_t stream) {
  if (p.rows == 0 || p.in_features + p.padded_rank == 0) return cudaSuccess;
  switch (p.dtype) {
    case Dtype::kFloat32:
      launch<float>(p, config, stream);
      break;
    case Dtype::kBfloat16:
      launch<__nv_bfloat16>(p, config, stream);
      break;
    case Dtype::kFloat16:
      launch<__half>(p, config, stream);
      break;
    case Dtype::kOther:
      return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

}  // namespace refiners
