"""The models compute what those of `diffusers` compute: small ones always, the published sizes by `make parity`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.auto_encoder import LatentDiffusionAutoencoder
from refiners.foundationals.latent_diffusion.stable_diffusion_1 import SD1Autoencoder, SD1UNet
from refiners.foundationals.latent_diffusion.stable_diffusion_xl import SDXLUNet

# --- keys -------------------------------------------------------------------------------------------------------------

ATTENTION = {"to_q": "Distribute.Linear_1", "to_k": "Distribute.Linear_2", "to_v": "Distribute.Linear_3"}
ATTENTION["to_out.0"] = "Linear"
TRANSFORMER = {
    **{f"attn1.{source}": f"Residual_1.SelfAttention.{target}" for source, target in ATTENTION.items()},
    **{f"attn2.{source}": f"Residual_2.Attention.{target}" for source, target in ATTENTION.items()},
    **{f"norm{i}": f"Residual_{i}.LayerNorm" for i in (1, 2, 3)},
    "ff.net.0.proj": "Residual_3.Linear_1",
    "ff.net.2": "Residual_3.Linear_2",
}
RESIDUAL_BLOCK = {
    "norm1": "Chain.GroupNorm_1",
    "conv1": "Chain.RangeAdapter2d.Conv2d",
    "time_emb_proj": "Chain.RangeAdapter2d.Chain.Linear",
    "norm2": "Chain.GroupNorm_2",
    "conv2": "Chain.Conv2d",
    "conv_shortcut": "Conv2d",
}
RESNET = RESIDUAL_BLOCK | {"conv1": "Chain.Conv2d_1", "conv2": "Chain.Conv2d_2"}


def rename_in_unet(key: str, unet: fl.Chain) -> str:
    xl = isinstance(unet, SDXLUNet)
    attention = "SDXLCrossAttention" if xl else "CLIPLCrossAttention"
    middle = "MiddleBlock" if xl else "Sum.MiddleBlock"
    encoder, output = ("TimestepEncoder.Sum.Chain", "OutputBlock") if xl else ("TimestepEncoder", "Chain")
    for source, target in (
        ("conv_in", "DownBlocks.Chain_1.Conv2d"),
        ("time_embedding.linear_", f"{encoder}.RangeEncoder.Linear_"),
        ("add_embedding.linear_", "TimestepEncoder.Sum.TextTimeEmbedding.Linear_"),
        ("conv_norm_out", f"{output}.GroupNorm"),
        ("conv_out", f"{output}.Conv2d"),
    ):
        if key.startswith(source):
            return target + key.removeprefix(source)
    match = re.match(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|\w+samplers)\.(\d+)\.(.*)$", key)
    assert match, key
    way, level, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if kind.endswith("samplers"):
        return (
            f"DownBlocks.Chain_{3 * level + 4}.Downsample.Conv2d{rest.removeprefix('conv')}"
            if way == "down"
            else (f"UpBlocks.Chain_{3 * level + 3}.Upsample.Conv2d{rest.removeprefix('conv')}")
        )
    place = {
        "down": f"DownBlocks.Chain_{3 * level + index + 2}",
        "up": f"UpBlocks.Chain_{3 * level + index + 1}",
        "mid": middle,
    }[way]
    group, suffix = rest.rsplit(".", 1)
    if kind == "resnets":
        number = f"_{index + 1}" if way == "mid" else ""
        return f"{place}.ResidualBlock{number}.{RESIDUAL_BLOCK[group]}.{suffix}"
    place = f"{place}.{attention}"
    block = re.match(r"transformer_blocks\.(\d+)\.(.*)$", group)
    if block:
        alone = len(unet.layer(f"{place}.Chain_2".split("."), fl.Chain)) == 1
        number = "" if alone else f"_{int(block[1]) + 1}"
        return f"{place}.Chain_2.CrossAttentionBlock{number}.{TRANSFORMER[block[2]]}.{suffix}"
    projection = "Linear" if xl else "Conv2d"
    inner = {"norm": "Chain_1.GroupNorm", "proj_in": f"Chain_1.{projection}", "proj_out": f"Chain_3.{projection}"}
    return f"{place}.{inner[group]}.{suffix}"


def rename_in_autoencoder(key: str, _: fl.Chain) -> str:
    for source, target in (
        ("encoder.conv_in", "Encoder.Conv2d"),
        ("encoder.conv_norm_out", "Encoder.Chain_2.GroupNorm"),
        ("encoder.conv_out", "Encoder.Chain_2.Conv2d"),
        ("quant_conv", "Encoder.Chain_3.Conv2d"),
        ("post_quant_conv", "Decoder.Conv2d_1"),
        ("decoder.conv_in", "Decoder.Conv2d_2"),
        ("decoder.conv_norm_out", "Decoder.Chain_2.GroupNorm"),
        ("decoder.conv_out", "Decoder.Chain_2.Conv2d"),
    ):
        if key.startswith(source):
            return target + key.removeprefix(source)
    match = re.match(r"(encoder|decoder)\.(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.*)$", key)
    assert match, key
    part, way, level, kind, index, rest = match[1], match[2], int(match[3] or 0), match[4], int(match[5]), match[6]
    number = level + (2 if part == "decoder" else 1)
    if way == "mid":
        number = 1 if part == "decoder" else 5
    place = f"{part.capitalize()}.Chain_1.Chain_{number}"
    group, suffix = rest.rsplit(".", 1)
    if kind == "resnets":
        return f"{place}.Resnet_{index + 1}.{RESNET[group]}.{suffix}"
    if kind == "attentions":
        inner = "GroupNorm" if group == "group_norm" else f"SelfAttention2d.{ATTENTION[group]}"
        return f"{place}.Residual.{inner}.{suffix}"
    return f"{place}.{'Downsample' if way == 'down' else 'Upsample'}.Conv2d.{suffix}"


def copy_weights(source: dict[str, Tensor], target: fl.Chain) -> None:
    """Put the weights of a model of `diffusers` into its counterpart; each has its place, and no place is left."""
    rename = rename_in_autoencoder if isinstance(target, LatentDiffusionAutoencoder) else rename_in_unet
    weights = {rename(key, target): weight for key, weight in source.items()}
    assert len(weights) == len(source)
    target.load_state_dict(weights, assign=True)


# --- small models -----------------------------------------------------------------------------------------------------


def make_public_unet(unet: SD1UNet | SDXLUNet) -> UNet2DConditionModel:
    """Build the U-Net of `diffusers` that has the sizes of another."""
    options: dict[str, Any] = {
        "in_channels": unet.in_channels,
        "out_channels": 4,
        "block_out_channels": unet.channels,
        "cross_attention_dim": unet.text_embedding_dim,
        "norm_num_groups": unet.num_groups,
    }
    if isinstance(unet, SDXLUNet):
        layers = unet.num_attention_layers
        options |= {
            "down_block_types": ["CrossAttnDownBlock2D" if n else "DownBlock2D" for n in layers],
            "up_block_types": ["CrossAttnUpBlock2D" if n else "UpBlock2D" for n in reversed(layers)],
            "transformer_layers_per_block": [max(n, 1) for n in layers],
            "attention_head_dim": [width // unet.head_dim for width in unet.channels],  # the number of heads, in fact
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": unet.time_ids_embedding_dim,
            "projection_class_embeddings_input_dim": unet.pooled_text_embedding_dim + 6 * unet.time_ids_embedding_dim,
        }
    else:
        levels = len(unet.channels)
        options |= {
            "down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1),
            "attention_head_dim": unet.num_attention_heads,  # the number of heads, in fact
        }
    return UNet2DConditionModel(**options).eval()


def call_public_unet(public: nn.Module, x: Tensor, conditions: dict[str, Tensor]) -> Tensor:
    more: dict[str, Any] = {}
    if "time_ids" in conditions:
        added = {"text_embeds": conditions["pooled_text_embedding"], "time_ids": conditions["time_ids"]}
        more = {"added_cond_kwargs": added}
    timestep = conditions["timestep"].flatten()
    with torch.no_grad():
        return public(x, timestep, encoder_hidden_states=conditions["clip_text_embedding"], **more).sample


@pytest.mark.parametrize("in_channels", [4, 9])
def test_a_small_unet_agrees(
    make_unet: Callable[..., Any],
    conditions: Callable[..., dict[str, Tensor]],
    call: Callable[..., Tensor],
    randomize: Callable[[nn.Module], None],
    error: Callable[[Tensor, Tensor], float],
    in_channels: int,
) -> None:
    unet = make_unet(in_channels)
    public = make_public_unet(unet)
    randomize(public)
    copy_weights(public.state_dict(), unet)
    cases: list[tuple[int, tuple[int, int], Any]] = [
        (1, (8, 8), [[501]]),
        (2, (7, 9), [1]),
        (3, (5, 12), [0, 333, 999]),
        (2, (1, 3), [[20], [30]]),
    ]
    for batch, size, timestep in cases:
        x = torch.randn(batch, in_channels, *size)
        given = conditions(unet, batch, timestep=torch.tensor(timestep))
        assert error(call(unet, x, timestep=torch.tensor(timestep)), call_public_unet(public, x, given)) < 1e-5


def make_public_autoencoder(channels: tuple[int, ...], num_groups: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=num_groups,
    ).eval()


def compare_autoencoders(
    autoencoder: LatentDiffusionAutoencoder, public: AutoencoderKL, compare: Callable[..., None], sizes: Any
) -> None:
    with torch.no_grad():
        for batch, height, width in sizes:
            x = 2 * torch.rand(batch, 3, height, width) - 1
            expected = autoencoder.encoder_scale * public.encode(x).latent_dist.mean
            name = type(autoencoder).__name__
            compare(f"{name}, encode", autoencoder.encode(x), expected)
            z = torch.randn(batch, 4, height // 8, width // 8)
            compare(f"{name}, decode", autoencoder.decode(z), public.decode(z / autoencoder.encoder_scale).sample)


def test_a_small_autoencoder_agrees(randomize: Callable[..., None], compare: Callable[..., None]) -> None:
    public = make_public_autoencoder((8, 16, 24, 24), num_groups=4)
    autoencoder = SD1Autoencoder(channels=(8, 16, 24, 24), num_groups=4)
    randomize(public)
    copy_weights(public.state_dict(), autoencoder)
    compare_autoencoders(autoencoder, public, compare, [(1, 32, 32), (2, 45, 61), (3, 8, 23)])


# --- the published sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [pytest.param(SD1UNet, marks=pytest.mark.parity), pytest.param(SDXLUNet, marks=pytest.mark.parity)]
)
def test_a_full_unet_agrees(
    kind: type[Any],
    conditions: Callable[..., dict[str, Tensor]],
    call: Callable[..., Tensor],
    randomize: Callable[[nn.Module], None],
    compare: Callable[..., None],
    tmp_path: Path,
) -> None:
    unet = kind(4, device="meta")
    public = make_public_unet(unet)
    randomize(public)
    x = torch.randn(2, 4, 32, 32)
    expected = call_public_unet(public, x, conditions(unet, 2))
    save_file(public.state_dict(), tmp_path / "public.safetensors")
    del public  # one at a time
    copy_weights(load_file(tmp_path / "public.safetensors"), unet)
    compare(kind.__name__, call(unet, x), expected)


@pytest.mark.parametrize("kind", [pytest.param(SD1Autoencoder, marks=pytest.mark.parity)])
def test_a_full_autoencoder_agrees(
    kind: type[Any], randomize: Callable[..., None], compare: Callable[..., None]
) -> None:
    autoencoder = kind(device="meta")
    public = make_public_autoencoder(autoencoder.channels, autoencoder.num_groups)
    randomize(public)
    copy_weights(public.state_dict(), autoencoder)
    compare_autoencoders(autoencoder, public, compare, [(1, 256, 256), (2, 72, 130)])
