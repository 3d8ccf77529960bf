// The choices of conv2d.
#include "ops/conv2d/conv2d_config.h"

#include "check.h"

using namespace refiners;

namespace {

constexpr Conv2dShape kUnet{320, 320, 1, {64, 64}, {3, 3}, {1, 1}, {1, 1}};

}  // namespace

TEST(squares_are_for_kernels_of_three_with_a_stride_of_one) {
  CHECK(choose_conv2d_method(kUnet, Dtype::kFloat32) == Conv2dMethod::kWinograd);
  CHECK(choose_conv2d_method(kUnet, Dtype::kBfloat16) == Conv2dMethod::kWinograd);
  for (const auto change : {+[](Conv2dShape& s) { s.kernel[1] = 1; }, +[](Conv2dShape& s) { s.stride[0] = 2; },
                            +[](Conv2dShape& s) { s.dilation[1] = 2; }, +[](Conv2dShape& s) { s.groups = 2; },
                            +[](Conv2dShape& s) { s.in_channels = 4; }, +[](Conv2dShape& s) { s.out_channels = 4; },
                            +[](Conv2dShape& s) { s.out[0] = 1; }}) {
    Conv2dShape shape = kUnet;
    change(shape);
    CHECK(choose_conv2d_method(shape, Dtype::kFloat32) == Conv2dMethod::kLibrary);
    CHECK(choose_conv2d_method(shape, Dtype::kFloat16) == Conv2dMethod::kProducts);
  }
}

TEST(few_channels_in_a_group_are_left_to_the_library) {
  Conv2dShape shape = kUnet;
  shape.groups = shape.in_channels;
  CHECK(choose_conv2d_method(shape, Dtype::kBfloat16) == Conv2dMethod::kLibrary);
}

TEST(the_library_keeps_what_it_multiplies_fast) {
  CpuFeatures features;
  CHECK(choose_conv2d_cpu_plan(CpuIsa::kAvx512, features, Dtype::kBfloat16).kernel);
  features.avx512_bf16 = true;
  CHECK(!choose_conv2d_cpu_plan(CpuIsa::kAvx512, features, Dtype::kBfloat16).kernel);
  CHECK(choose_conv2d_cpu_plan(CpuIsa::kAvx512, features, Dtype::kFloat32).kernel);
  CHECK(!choose_conv2d_cpu_plan(CpuIsa::kPortable, features, Dtype::kFloat32).kernel);
}

TEST(blocks_of_squares_are_even) {
  CHECK(choose_conv2d_squares(8) == 12);
  CHECK(choose_conv2d_squares(2048) == 96);
  CHECK(choose_conv2d_squares(128) == 72);
  CHECK(choose_conv2d_squares(97) == 60);
}

TEST(columns_are_divided_among_the_threads) {
  CHECK(choose_conv2d_columns(128, 1280, 1, 2) == 256);
  CHECK(choose_conv2d_columns(128, 256, 1, 2) == 128);
  CHECK(choose_conv2d_columns(4096, 4, 1, 2) == 64);
  CHECK(choose_conv2d_columns(64, 1, 320, 3) == 64);
}
