"""Published families as spaces and as fixed architectures: `bp.presets.swin.space()`, `bp.presets.swin.fixed("t")`.

Every file is one family with two functions: `space(...)` returns a `Space` of small members to search, sized for the
shipped data unless told otherwise; `fixed(size)` returns one `Architecture`, at a published size or at "tiny", which
trains on a laptop. What a family here leaves out of the original is said in its file.

    gpt, llama          decoders of text
    mamba2_hybrid       state spaces, attention and MLPs in given shares
    based, transnormer  linear attention beside sliding windows; with decays
    brainformer         non-uniform blocks, repeated
    masformer           full attention in few layers, windows elsewhere
    mixed_attention     the type of attention decided per layer
    slab                linear attention under norms that turn into batch norms
    mambamixer          state spaces along tokens and along channels, over averages of all before
    titans              a memory that learns while it reads: as context, as gate, as layer
    wide_attention      the same heads in many narrow layers or in a wide one
    vit, autoformer     images as sequences of patches
    cct, pit, t2t, tnt  small images, by convolutions; with pooling between stages; tokens of tokens; words in patches
    metaformer          pyramids with any token mixer; PoolFormer
    swin, pvt, convnext pyramids of windows, of reduced attention, of convolutions
    mvit                pyramids of attention between pooled tokens, of images and of videos
    pvt_v2              that with overlapping patches and feed-forward layers that filter
    dinat, halonet, cvt, lit    pyramids of neighbourhoods, of blocks with a halo, of convolutional projections, of late
                        attention
    iformer, edgenext, nextvit, ascan       pyramids of convolutions and attention: side by side, then, in turn, by stage
    fcaformer           convolutions, then attention that reads merged tokens of all layers before
    shvit, efficientvim grids that start coarse: one head over some of the channels; states that are gated, not tokens
    ghostnetv2, raftmlp pyramids of ghost features behind gates, of token MLPs along rows and columns
    conformer, squeezeformer, lighthubert   speech
    lmuformer           spoken words by a Legendre memory, with and without spikes
    sizes, pyramids     what they share
"""

from __future__ import annotations

from . import (
    ascan,
    autoformer,
    based,
    brainformer,
    cct,
    conformer,
    convnext,
    cvt,
    dinat,
    edgenext,
    efficientvim,
    fcaformer,
    ghostnetv2,
    gpt,
    halonet,
    iformer,
    lighthubert,
    lit,
    llama,
    lmuformer,
    mamba2_hybrid,
    mambamixer,
    masformer,
    metaformer,
    mixed_attention,
    mvit,
    nextvit,
    pit,
    pvt,
    pvt_v2,
    raftmlp,
    shvit,
    slab,
    squeezeformer,
    swin,
    t2t,
    titans,
    tnt,
    transnormer,
    vit,
    wide_attention,
)

__all__ = ["ascan", "autoformer", "based", "brainformer", "cct", "conformer", "convnext", "cvt", "dinat", "edgenext",
           "efficientvim", "fcaformer", "ghostnetv2", "gpt", "halonet", "iformer", "lighthubert", "lit", "llama", "lmuformer",
           "mamba2_hybrid", "mambamixer", "masformer", "metaformer", "mixed_attention", "mvit", "nextvit", "pit", "pvt",
           "pvt_v2", "raftmlp", "shvit", "slab", "squeezeformer", "swin", "t2t", "titans", "tnt", "transnormer", "vit",
           "wide_attention"]
