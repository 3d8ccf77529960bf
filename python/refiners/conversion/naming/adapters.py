"""The names of the layers of IP-Adapters, T2I-Adapters, ELLA, and of the preprocessor for line drawings."""

from __future__ import annotations

from refiners.conversion.naming.unet import SD15, SDXL, UNetLayout


def ip_adapter_order(layout: UNetLayout) -> list[int]:
    """List the numbers of the cross-attentions in the files of IP-Adapter, in the order in which ours run.

    The files count self- and cross-attentions together, those of the way down first, then the way up, then the middle.
    """
    down = sum(layout.blocks * depth for depth in layout.depths)
    up = sum((layout.blocks + 1) * depth for depth in layout.depths)
    total = down + up + layout.middle_depth
    order = [*range(down), *range(down + up, total), *range(down, down + up)]
    return [2 * index + 1 for index in order]


def ip_adapter_keys(layout: UNetLayout) -> dict[str, str]:
    """Map the names of the layers of an IP-Adapter to ours; see `ip_adapter_order`."""
    keys = {"image_proj.proj": "image_proj.Linear", "image_proj.norm": "image_proj.LayerNorm"}
    return {**keys, **_attention_keys(layout)}


def ip_adapter_plus_keys(layout: UNetLayout, layers: int = 4) -> dict[str, str]:
    """Map the names of the layers of an IP-Adapter Plus, whose images pass a resampler, to ours."""
    keys = {
        "image_proj.latents": "image_proj.LatentsToken.Parameter.weight",
        "image_proj.proj_in": "image_proj.Linear_1",
        "image_proj.proj_out": "image_proj.Linear_2",
        "image_proj.norm_out": "image_proj.LayerNorm",
    }
    for index in range(layers):
        theirs = f"image_proj.layers.{index}"
        ours = f"image_proj.Transformer.TransformerLayer_{index + 1}"
        attention = f"{ours}.Residual_1.PerceiverAttention"
        keys |= {
            f"{theirs}.0.norm1": f"{attention}.Distribute.LayerNorm_1",
            f"{theirs}.0.norm2": f"{attention}.Distribute.LayerNorm_2",
            f"{theirs}.0.to_kv": f"{attention}.Parallel.Chain_1.Linear",
            f"{theirs}.0.to_q": f"{attention}.Parallel.Chain_2.Linear",
            f"{theirs}.0.to_out": f"{attention}.Linear",
            f"{theirs}.1.0": f"{ours}.Residual_2.LayerNorm",
            f"{theirs}.1.1": f"{ours}.Residual_2.FeedForward.Linear_1",
            f"{theirs}.1.3": f"{ours}.Residual_2.FeedForward.Linear_2",
        }
    return {**keys, **_attention_keys(layout)}


def _attention_keys(layout: UNetLayout) -> dict[str, str]:
    return {
        f"ip_adapter.{number}.{layer}": f"ip_adapter.{index:03}.{layer}"
        for index, number in enumerate(ip_adapter_order(layout))
        for layer in ("to_k_ip", "to_v_ip")
    }


SD15_ATTENTIONS, SDXL_ATTENTIONS = ip_adapter_order(SD15), ip_adapter_order(SDXL)


def t2i_adapter_keys(levels: int = 4, blocks: int = 2) -> dict[str, str]:
    """Map the names of the layers of a T2I-Adapter in diffusers to ours."""
    keys = {"adapter.conv_in": "Conv2d"}
    for level in range(levels):
        ours = f"StatefulResidualBlocks_{level + 1}.ResidualBlocks"
        if level in (1, 2):  # the levels that change the number of channels
            keys[f"adapter.body.{level}.in_conv"] = f"{ours}.Conv2d"
        for block in range(blocks):
            for i in (1, 2):
                source = f"adapter.body.{level}.resnets.{block}.block{i}"
                keys[source] = f"{ours}.Chain.ResidualBlock_{block + 1}.Conv2d_{i}"
    return keys


def informative_drawings_keys(residuals: int = 3) -> dict[str, str]:
    """Map the names of the layers of the generator of informative drawings to ours."""
    keys = {"model0.1": "Chain_1.Conv2d", "model1.0": "Chain_2.Conv2d", "model1.3": "Chain_3.Conv2d"}
    for index in range(residuals):
        keys[f"model2.{index}.conv_block.1"] = f"Residual_{index + 1}.Conv2d_1"
        keys[f"model2.{index}.conv_block.5"] = f"Residual_{index + 1}.Conv2d_2"
    keys |= {"model3.0": "Chain_4.ConvTranspose2d", "model3.3": "Chain_5.ConvTranspose2d"}
    return {**keys, "model4.1": "Chain_6.Conv2d"}


def ella_key(name: str) -> str | None:
    """Give our name of a layer of ELLA, its suffix included where ours has another; None for what we do not have.

    Queries, keys and values are one tensor there: our name ends in `Distribute`, and each third is a `Linear_i` below.
    """
    resampler = "PerceiverResampler"
    if "latents" in name:
        return f"{resampler}.Latents.ParameterInitialized.weight"
    for source, target in (("proj_in", "Linear"), ("time_aware", "Residual.Linear")):
        if source in name and "in_proj" not in name:
            return f"{resampler}.{target}"
    if "time_embedding.linear_" in name:
        return f"TimestepEncoder.RangeEncoder.Linear_{name.rpartition('linear_')[2]}"
    parts = name.split(".")
    if len(parts) < 4 or not parts[2].isdecimal():
        return None
    layer = f"{resampler}.Transformer.TransformerLayer_{int(parts[2]) + 1}"
    attention = f"{layer}.Residual_1.PerceiverAttention"
    inner = ".".join(parts[3:])
    for source, target in {
        "attn.in_proj": f"{attention}.Attention.Distribute",
        "attn.out_proj": f"{attention}.Attention.Linear",
        "ln_1": f"{attention}.Distribute.AdaLayerNorm_2.Parallel.Chain.Linear",
        "ln_2": f"{attention}.Distribute.AdaLayerNorm_1.Parallel.Chain.Linear",
        "ln_ff": f"{layer}.Residual_2.AdaLayerNorm.Parallel.Chain.Linear",
        "mlp.c_fc": f"{layer}.Residual_2.FeedForward.Linear_1",
        "mlp.c_proj": f"{layer}.Residual_2.FeedForward.Linear_2",
    }.items():
        if inner.startswith(source):
            return target
    return None
