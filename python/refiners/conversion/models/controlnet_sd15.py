"""Weights of ControlNets for Stable Diffusion 1.5."""

import torch

from refiners.conversion.naming.control import SD15_CONTROLNET, DiffusersControl, RefinersControl, controlnet_names
from refiners.conversion.naming.names import key_map
from refiners.conversion.utils import Conversion, Hub, WeightRecipe

diffusers_recipe = WeightRecipe(
    key_map=key_map(
        controlnet_names(SD15_CONTROLNET, DiffusersControl), controlnet_names(SD15_CONTROLNET, RefinersControl)
    ),
)

canny = Conversion(
    original=Hub(
        repo_id="lllyasviel/control_v11p_sd15_canny",
        filename="diffusion_pytorch_model.safetensors",
        revision="115a470d547982438f70198e353a921996e2e819",
        expected_sha256="be713fb941fc7c625f0c7d816b6a19115783a665f3049a8974f127e0c075d9a9",
    ),
    converted=Hub(
        repo_id="refiners/sd15.controlnet.canny",
        filename="model.safetensors",
        expected_sha256="0d6d0ba036dc26f4842e89f3c5f2f37feca904863e83b578db099a6fdafc4f51",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)

depth = Conversion(
    original=Hub(
        repo_id="lllyasviel/control_v11f1p_sd15_depth",
        filename="diffusion_pytorch_model.safetensors",
        revision="539f99181d33db39cf1af2e517cd8056785f0a87",
        expected_sha256="999aca923ca5e19e70e6afc8d11073cc3c03553ca935b636bd5925df4a1c77d1",
    ),
    converted=Hub(
        repo_id="refiners/sd15.controlnet.depth",
        filename="model.safetensors",
        expected_sha256="d131fb2e73e89e56ee1e73b6af17373bba886da6ae24dd94300a93e993292133",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)

lineart = Conversion(
    original=Hub(
        repo_id="lllyasviel/control_v11p_sd15_lineart",
        filename="diffusion_pytorch_model.safetensors",
        revision="8a158f547e031c5b8fbca19ead09a74767ff4db0",
        expected_sha256="d9d6d0e5526dd21dfc503f9e42a93ff1f977aa52df3c14e8ac11085b518cb114",
    ),
    converted=Hub(
        repo_id="refiners/sd15.controlnet.lineart",
        filename="model.safetensors",
        expected_sha256="5fb9ce17b92032c1b7d54aa7fb3c00c067f08e9c024a43cde06999a5a18391cb",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)

normalbae = Conversion(
    original=Hub(
        repo_id="lllyasviel/control_v11p_sd15_normalbae",
        filename="diffusion_pytorch_model.safetensors",
        revision="cb7296e6587a219068e9d65864e38729cd862aa8",
        expected_sha256="e6c3772b35e5cb1869beca97a6ade6e8e5283310462297b10d129e25351983d7",
    ),
    converted=Hub(
        repo_id="refiners/sd15.controlnet.normalbae",
        filename="model.safetensors",
        expected_sha256="89ac08579cd244cf64bda2045d302d5455b33b951fada4abd089b5defbade364",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)

sam = Conversion(
    original=Hub(
        repo_id="mfidabel/controlnet-segment-anything",
        filename="diffusion_pytorch_model.bin",
        revision="22bf4d81a4c7557287815a53e1f55279836e2bfa",
        expected_sha256="9d4f35bb941e35ceeb54e4d6d35c9239949b193e5c7389426b95a97e43de884d",
    ),
    converted=Hub(
        repo_id="refiners/sd15.controlnet.sam",
        filename="model.safetensors",
        expected_sha256="b8e0e1f2b1e542e5a21e21cdadf135981937b9ca491312b75aa85bff63b35589",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)

tile = Conversion(
    original=Hub(
        repo_id="lllyasviel/control_v11f1e_sd15_tile",
        filename="diffusion_pytorch_model.bin",
        revision="3f877705c37010b7221c3d10743307d6b5b6efac",
        expected_sha256="eb05b4c3665bd76dad70a90652014a9b3aab391abd8a5bb484e860330f9492fb",
    ),
    converted=Hub(
        repo_id="refiners/sd15.controlnet.tile",
        filename="model.safetensors",
        expected_sha256="3002029df75364fcbdbf6024dc4c414c929cb8623a2fe7d406a4dbfcee1ffa5a",
    ),
    recipe=diffusers_recipe,
    dtype=torch.float16,
)
