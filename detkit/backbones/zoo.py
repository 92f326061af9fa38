"""The networks of timm and torchvision that have a short name here, and their papers.

Each serves every detector as a feature pyramid and, with its own head, as a classifier (`pool: own`). The tag behind a
model of timm's names the weights that `pretrained: true` downloads; a model without a tag has none. Detkit's own
networks are in `detkit.backbones.BACKBONES`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """Networks of one paper. models: by name, each the one model of timm or torchvision that it is."""

    paper: str
    models: dict[str, str]


FAMILIES = {
    "AlexNet": Family(
        "One weird trick for parallelizing convolutional neural networks (Krizhevsky, 2014, arXiv 1404.5997)",
        {"alexnet": "torchvision/alexnet"},
    ),
    "VGG": Family(
        "Very Deep Convolutional Networks for Large-Scale Image Recognition (Simonyan and Zisserman, 2014, "
        "arXiv 1409.1556)",
        {
            "vgg11": "timm/vgg11.tv_in1k",
            "vgg11_bn": "timm/vgg11_bn.tv_in1k",
            "vgg13": "timm/vgg13.tv_in1k",
            "vgg13_bn": "timm/vgg13_bn.tv_in1k",
            "vgg16": "timm/vgg16.tv_in1k",
            "vgg16_bn": "timm/vgg16_bn.tv_in1k",
            "vgg19": "timm/vgg19.tv_in1k",
            "vgg19_bn": "timm/vgg19_bn.tv_in1k",
        },
    ),
    "GoogLeNet": Family(
        "Going Deeper with Convolutions (Szegedy et al., 2014, arXiv 1409.4842)",
        {"googlenet": "torchvision/googlenet"},
    ),
    "ResNet": Family(
        "Deep Residual Learning for Image Recognition (He et al., 2015, arXiv 1512.03385)",
        {
            "resnet18": "timm/resnet18.a1_in1k",
            "resnet34": "timm/resnet34.a1_in1k",
            "resnet50": "timm/resnet50.a1_in1k",
            "resnet101": "timm/resnet101.a1h_in1k",
            "resnet152": "timm/resnet152.a1h_in1k",
        },
    ),
    "DenseNet": Family(
        "Densely Connected Convolutional Networks (Huang et al., 2016, arXiv 1608.06993)",
        {
            "densenet121": "timm/densenet121.ra_in1k",
            "densenet161": "timm/densenet161.tv_in1k",
            "densenet169": "timm/densenet169.tv_in1k",
            "densenet201": "timm/densenet201.tv_in1k",
        },
    ),
    "EfficientNet": Family(
        "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (Tan and Le, 2019, arXiv 1905.11946)",
        {
            "efficientnet_b0": "timm/efficientnet_b0.ra_in1k",
            "efficientnet_b1": "timm/efficientnet_b1.ra4_e3600_r240_in1k",
            "efficientnet_b2": "timm/efficientnet_b2.ra_in1k",
            "efficientnet_b3": "timm/efficientnet_b3.ra2_in1k",
            "efficientnet_b4": "timm/efficientnet_b4.ra2_in1k",
            "efficientnet_b5": "timm/efficientnet_b5.sw_in12k_ft_in1k",
            "efficientnet_b6": "timm/tf_efficientnet_b6.ns_jft_in1k",
            "efficientnet_b7": "timm/tf_efficientnet_b7.ns_jft_in1k",
        },
    ),
    "RegNet": Family(
        "Designing Network Design Spaces (Radosavovic et al., 2020, arXiv 2003.13678)",
        {
            "regnetx_200mf": "timm/regnetx_002.pycls_in1k",
            "regnetx_400mf": "timm/regnetx_004.pycls_in1k",
            "regnetx_600mf": "timm/regnetx_006.pycls_in1k",
            "regnetx_800mf": "timm/regnetx_008.tv2_in1k",
            "regnetx_1.6gf": "timm/regnetx_016.tv2_in1k",
            "regnetx_3.2gf": "timm/regnetx_032.tv2_in1k",
            "regnetx_4gf": "timm/regnetx_040.pycls_in1k",
            "regnetx_6.4gf": "timm/regnetx_064.pycls_in1k",
            "regnetx_8gf": "timm/regnetx_080.tv2_in1k",
            "regnetx_12gf": "timm/regnetx_120.pycls_in1k",
            "regnetx_16gf": "timm/regnetx_160.tv2_in1k",
            "regnetx_32gf": "timm/regnetx_320.tv2_in1k",
            "regnety_200mf": "timm/regnety_002.pycls_in1k",
            "regnety_400mf": "timm/regnety_004.tv2_in1k",
            "regnety_600mf": "timm/regnety_006.pycls_in1k",
            "regnety_800mf": "timm/regnety_008.pycls_in1k",
            "regnety_1.6gf": "timm/regnety_016.tv2_in1k",
            "regnety_3.2gf": "timm/regnety_032.ra_in1k",
            "regnety_4gf": "timm/regnety_040.ra3_in1k",
            "regnety_6.4gf": "timm/regnety_064.ra3_in1k",
            "regnety_8gf": "timm/regnety_080.ra3_in1k",
            "regnety_12gf": "timm/regnety_120.sw_in12k_ft_in1k",
            "regnety_16gf": "timm/regnety_160.sw_in12k_ft_in1k",
            "regnety_32gf": "timm/regnety_320.tv2_in1k",
        },
    ),
    "ConvNeXt": Family(
        "A ConvNet for the 2020s (Liu et al., 2022, arXiv 2201.03545)",
        {
            "convnext_t": "timm/convnext_tiny.in12k_ft_in1k",
            "convnext_s": "timm/convnext_small.in12k_ft_in1k",
            "convnext_b": "timm/convnext_base.fb_in22k_ft_in1k",
            "convnext_l": "timm/convnext_large.fb_in22k_ft_in1k",
            "convnext_xl": "timm/convnext_xlarge.fb_in22k_ft_in1k",
        },
    ),
    "ViT": Family(
        "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale (Dosovitskiy et al., 2020, "
        "arXiv 2010.11929); the sizes Ti and S and the weights of How to train your ViT? (Steiner et al., 2021, "
        "arXiv 2106.10270)",
        {
            "vit_ti": "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
            "vit_s": "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
            "vit_b": "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
            "vit_l": "timm/vit_large_patch16_224.augreg_in21k_ft_in1k",
            "vit_h": "timm/vit_huge_patch14_224.orig_in21k",
            "vit_s_p32": "timm/vit_small_patch32_224.augreg_in21k_ft_in1k",
            "vit_b_p32": "timm/vit_base_patch32_224.augreg_in21k_ft_in1k",
        },
    ),
    "DeiT": Family(
        "Training data-efficient image transformers & distillation through attention (Touvron et al., 2020, "
        "arXiv 2012.12877); `_distilled` with the token of distillation",
        {
            "deit_ti": "timm/deit_tiny_patch16_224.fb_in1k",
            "deit_s": "timm/deit_small_patch16_224.fb_in1k",
            "deit_b": "timm/deit_base_patch16_224.fb_in1k",
            "deit_ti_distilled": "timm/deit_tiny_distilled_patch16_224.fb_in1k",
            "deit_s_distilled": "timm/deit_small_distilled_patch16_224.fb_in1k",
            "deit_b_distilled": "timm/deit_base_distilled_patch16_224.fb_in1k",
        },
    ),
    "PVT v2": Family(
        "PVT v2: Improved Baselines with Pyramid Vision Transformer (Wang et al., 2021, arXiv 2106.13797)",
        {
            "pvt_v2_b0": "timm/pvt_v2_b0.in1k",
            "pvt_v2_b1": "timm/pvt_v2_b1.in1k",
            "pvt_v2_b2": "timm/pvt_v2_b2.in1k",
            "pvt_v2_b2_li": "timm/pvt_v2_b2_li.in1k",
            "pvt_v2_b3": "timm/pvt_v2_b3.in1k",
            "pvt_v2_b4": "timm/pvt_v2_b4.in1k",
            "pvt_v2_b5": "timm/pvt_v2_b5.in1k",
        },
    ),
    "Swin": Family(
        "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (Liu et al., 2021, arXiv 2103.14030)",
        {
            "swin_t": "timm/swin_tiny_patch4_window7_224.ms_in1k",
            "swin_s": "timm/swin_small_patch4_window7_224.ms_in22k_ft_in1k",
            "swin_b": "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k",
            "swin_l": "timm/swin_large_patch4_window7_224.ms_in22k_ft_in1k",
        },
    ),
    "Swin V2": Family(
        "Swin Transformer V2: Scaling Up Capacity and Resolution (Liu et al., 2021, arXiv 2111.09883); windows of 8 "
        "cells, or of 16",
        {
            "swin_v2_t": "timm/swinv2_tiny_window8_256.ms_in1k",
            "swin_v2_s": "timm/swinv2_small_window8_256.ms_in1k",
            "swin_v2_b": "timm/swinv2_base_window8_256.ms_in1k",
            "swin_v2_t_w16": "timm/swinv2_tiny_window16_256.ms_in1k",
            "swin_v2_s_w16": "timm/swinv2_small_window16_256.ms_in1k",
            "swin_v2_b_w16": "timm/swinv2_base_window16_256.ms_in1k",
            "swin_v2_l_w16": "timm/swinv2_large_window12to16_192to256.ms_in22k_ft_in1k",
        },
    ),
    "XCiT": Family(
        "XCiT: Cross-Covariance Image Transformers (El-Nouby et al., 2021, arXiv 2106.09681)",
        {
            "xcit_n12": "timm/xcit_nano_12_p16_224.fb_in1k",
            "xcit_t12": "timm/xcit_tiny_12_p16_224.fb_in1k",
            "xcit_t24": "timm/xcit_tiny_24_p16_224.fb_in1k",
            "xcit_s12": "timm/xcit_small_12_p16_224.fb_in1k",
            "xcit_s24": "timm/xcit_small_24_p16_224.fb_in1k",
            "xcit_m24": "timm/xcit_medium_24_p16_224.fb_in1k",
            "xcit_l24": "timm/xcit_large_24_p16_224.fb_in1k",
            "xcit_n12_p8": "timm/xcit_nano_12_p8_224.fb_in1k",
            "xcit_t12_p8": "timm/xcit_tiny_12_p8_224.fb_in1k",
            "xcit_s12_p8": "timm/xcit_small_12_p8_224.fb_in1k",
        },
    ),
    "VOLO": Family(
        "VOLO: Vision Outlooker for Visual Recognition (Yuan et al., 2021, arXiv 2106.13112)",
        {
            "volo_d1": "timm/volo_d1_224.sail_in1k",
            "volo_d2": "timm/volo_d2_224.sail_in1k",
            "volo_d3": "timm/volo_d3_224.sail_in1k",
            "volo_d4": "timm/volo_d4_224.sail_in1k",
            "volo_d5": "timm/volo_d5_224.sail_in1k",
        },
    ),
    "TNT": Family(
        "Transformer in Transformer (Han et al., 2021, arXiv 2103.00112)",
        {"tnt_s": "timm/tnt_s_patch16_224.in1k", "tnt_b": "timm/tnt_b_patch16_224.in1k"},
    ),
    "CoAtNet": Family(
        "CoAtNet: Marrying Convolution and Attention for All Data Sizes (Dai et al., 2021, arXiv 2106.04803); `_rw` "
        "are timm's variants, which have weights",
        {
            "coatnet_0": "timm/coatnet_0_224",
            "coatnet_1": "timm/coatnet_1_224",
            "coatnet_2": "timm/coatnet_2_224",
            "coatnet_3": "timm/coatnet_3_224",
            "coatnet_4": "timm/coatnet_4_224",
            "coatnet_5": "timm/coatnet_5_224",
            "coatnet_0_rw": "timm/coatnet_0_rw_224.sw_in1k",
            "coatnet_1_rw": "timm/coatnet_1_rw_224.sw_in1k",
            "coatnet_2_rw": "timm/coatnet_2_rw_224.sw_in12k_ft_in1k",
        },
    ),
    "PoolFormer": Family(
        "MetaFormer Is Actually What You Need for Vision (Yu et al., 2021, arXiv 2111.11418)",
        {
            "poolformer_s12": "timm/poolformer_s12.sail_in1k",
            "poolformer_s24": "timm/poolformer_s24.sail_in1k",
            "poolformer_s36": "timm/poolformer_s36.sail_in1k",
            "poolformer_m36": "timm/poolformer_m36.sail_in1k",
            "poolformer_m48": "timm/poolformer_m48.sail_in1k",
        },
    ),
}

ZOO = {name: source for family in FAMILIES.values() for name, source in family.models.items()}
"""Which model of timm or torchvision each name is."""
