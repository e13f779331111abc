"""What models are called elsewhere (Hugging Face's transformers, torch.hub, OpenAI, torchvision), and the names of the same weights here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache

SIZES = ("small", "base", "large", "giant")
LETTERS = {"s": "small", "b": "base", "l": "large", "g": "giant"}

TRANSFORMERS: Mapping[str, str] = {
    **{f"facebook/dinov2-{size}": f"timm:vit_{size}_patch14_dinov2.lvd142m" for size in SIZES},
    **{f"facebook/dinov2-{size}-imagenet1k-1-layer": f"timm:vit_{size}_patch14_dinov2.lvd142m" for size in SIZES},
    **{f"facebook/dinov2-with-registers-{size}": f"timm:vit_{size}_patch14_reg4_dinov2.lvd142m" for size in SIZES},
    **{
        f"facebook/dinov3-{theirs}-pretrain-lvd1689m": f"timm:{ours}.{tag}lvd1689m"
        for theirs, ours, tag in (
            ("vits16", "vit_small_patch16_dinov3", ""), ("vits16plus", "vit_small_plus_patch16_dinov3", ""),
            ("vitb16", "vit_base_patch16_dinov3", ""), ("vitl16", "vit_large_patch16_dinov3", ""),
            ("vith16plus", "vit_huge_plus_patch16_dinov3", ""), ("vit7b16", "vit_7b_patch16_dinov3", ""),
            ("convnext-tiny", "convnext_tiny", "dinov3_"), ("convnext-small", "convnext_small", "dinov3_"),
            ("convnext-base", "convnext_base", "dinov3_"), ("convnext-large", "convnext_large", "dinov3_"),
        )
    },
    **{f"facebook/dino-vit{s}{p}": f"timm:vit_{LETTERS[s]}_patch{p}_224.dino" for s in "sb" for p in (8, 16)},
    **{f"facebook/vit-mae-{size}": f"timm:vit_{size}_patch{14 if size == 'huge' else 16}_224.mae" for size in ("base", "large", "huge")},
    **{f"facebook/deit-{size}-patch16-224": f"timm:deit_{size}_patch16_224.fb_in1k" for size in ("tiny", "small", "base")},
    **{f"facebook/deit-{size}-distilled-patch16-224": f"timm:deit_{size}_distilled_patch16_224.fb_in1k" for size in ("tiny", "small", "base")},
    "facebook/deit-base-patch16-384": "timm:deit_base_patch16_384.fb_in1k",
    "facebook/deit-base-distilled-patch16-384": "timm:deit_base_distilled_patch16_384.fb_in1k",
    **{f"facebook/convnext-{size}-224": f"timm:convnext_{size}.fb_in1k" for size in ("tiny", "small", "base", "large")},
    **{f"facebook/convnext-{size}-224-22k": f"timm:convnext_{size}.fb_in22k" for size in ("base", "large", "xlarge")},
    **{f"facebook/convnext-{size}-224-22k-1k": f"timm:convnext_{size}.fb_in22k_ft_in1k" for size in ("base", "large", "xlarge")},
    **{f"facebook/convnext-{size}-384-22k-1k": f"timm:convnext_{size}.fb_in22k_ft_in1k_384" for size in ("base", "large", "xlarge")},
    **{f"facebook/convnextv2-{size}-1k-224": f"timm:convnextv2_{size}.fcmae_ft_in1k" for size in ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")},
    **{f"facebook/convnextv2-{size}-22k-224": f"timm:convnextv2_{size}.fcmae_ft_in22k_in1k" for size in ("nano", "tiny", "base", "large")},
    **{f"facebook/convnextv2-{size}-22k-384": f"timm:convnextv2_{size}.fcmae_ft_in22k_in1k_384" for size in ("nano", "tiny", "base", "large", "huge")},
    **{f"facebook/levit-{width}": f"timm:levit_{width.lower()}.fb_dist_in1k" for width in ("128S", "128", "192", "256", "384")},
    "google/vit-base-patch16-224": "timm:vit_base_patch16_224.orig_in21k_ft_in1k",
    "google/vit-base-patch16-384": "timm:vit_base_patch16_384.orig_in21k_ft_in1k",
    "google/vit-large-patch32-384": "timm:vit_large_patch32_384.orig_in21k_ft_in1k",
    **{f"google/vit-{size}-in21k": f"timm:vit_{size.replace('-', '_')}.orig_in21k" for size in ("base-patch16-224", "base-patch32-224", "large-patch16-224", "large-patch32-224", "huge-patch14-224")},
    **{f"microsoft/resnet-{depth}": f"timm:resnet{depth}.a1_in1k" for depth in (18, 34, 50, 101, 152)},
    **{f"microsoft/swin-{size}-patch4-window7-224": f"timm:swin_{size}_patch4_window7_224.ms_in1k" for size in ("tiny", "small", "base")},
    "microsoft/swin-base-patch4-window12-384": "timm:swin_base_patch4_window12_384.ms_in1k",
    **{f"microsoft/swin-{size}-patch4-{window}-in22k": f"timm:swin_{size}_patch4_{window.replace('-', '_')}.ms_in22k" for size in ("base", "large") for window in ("window7-224", "window12-384")},
    **{f"microsoft/swin-large-patch4-{window}": f"timm:swin_large_patch4_{window.replace('-', '_')}.ms_in22k_ft_in1k" for window in ("window7-224", "window12-384")},
    **{f"microsoft/swinv2-{size}-patch4-{window}-256": f"timm:swinv2_{size}_{window}_256.ms_in1k" for size in ("tiny", "small", "base") for window in ("window8", "window16")},
    **{f"microsoft/beit-{size}-patch16-224": f"timm:beit_{size}_patch16_224.in22k_ft_in22k_in1k" for size in ("base", "large")},
    **{f"microsoft/beit-{size}-patch16-384": f"timm:beit_{size}_patch16_384.in22k_ft_in22k_in1k" for size in ("base", "large")},
    **{f"microsoft/beit-{size}-patch16-224-pt22k-ft22k": f"timm:beit_{size}_patch16_224.in22k_ft_in22k" for size in ("base", "large")},
    **{f"sail/poolformer_{size}": f"timm:poolformer_{size}.sail_in1k" for size in ("s12", "s24", "s36", "m36", "m48")},
    **{f"apple/mobilevit-{size}": f"timm:mobilevit_{theirs}.cvnets_in1k" for size, theirs in (("small", "s"), ("x-small", "xs"), ("xx-small", "xxs"))},
    "openai/clip-vit-base-patch32": "open_clip:ViT-B-32-quickgelu/openai",
    "openai/clip-vit-base-patch16": "open_clip:ViT-B-16-quickgelu/openai",
    "openai/clip-vit-large-patch14": "open_clip:ViT-L-14-quickgelu/openai",
    "openai/clip-vit-large-patch14-336": "open_clip:ViT-L-14-336-quickgelu/openai",
    "google/siglip-base-patch16-224": "open_clip:ViT-B-16-SigLIP/webli",
    **{f"google/siglip-base-patch16-{side}": f"open_clip:ViT-B-16-SigLIP-{side}/webli" for side in (256, 384, 512)},
    "google/siglip-base-patch16-256-multilingual": "open_clip:ViT-B-16-SigLIP-i18n-256/webli",
    **{f"google/siglip-large-patch16-{side}": f"open_clip:ViT-L-16-SigLIP-{side}/webli" for side in (256, 384)},
    "google/siglip-so400m-patch14-224": "open_clip:ViT-SO400M-14-SigLIP/webli",
    "google/siglip-so400m-patch14-384": "open_clip:ViT-SO400M-14-SigLIP-384/webli",
    "google/siglip2-base-patch16-224": "open_clip:ViT-B-16-SigLIP2/webli",
    "google/siglip2-base-patch32-256": "open_clip:ViT-B-32-SigLIP2-256/webli",
    **{f"google/siglip2-base-patch16-{side}": f"open_clip:ViT-B-16-SigLIP2-{side}/webli" for side in (256, 384, 512)},
    **{f"google/siglip2-large-patch16-{side}": f"open_clip:ViT-L-16-SigLIP2-{side}/webli" for side in (256, 384, 512)},
    "google/siglip2-so400m-patch14-224": "open_clip:ViT-SO400M-14-SigLIP2/webli",
    "google/siglip2-so400m-patch14-384": "open_clip:ViT-SO400M-14-SigLIP2-378/webli",
    **{f"facebook/metaclip-{theirs}-{size}": f"open_clip:ViT-{ours}-quickgelu/metaclip_{data}" for theirs, ours in (("b32", "B-32"), ("b16", "B-16"), ("l14", "L-14")) for size, data in (("400m", "400m"), ("fullcc2.5b", "fullcc"))},
}  # fmt: skip
"""Repository of the hub whose files have the names of transformers -> the same weights here."""

TORCH_HUB: Mapping[str, str] = {
    **{f"dinov2_vit{letter}14": f"timm:vit_{size}_patch14_dinov2.lvd142m" for letter, size in LETTERS.items()},
    **{f"dinov2_vit{letter}14_reg": f"timm:vit_{size}_patch14_reg4_dinov2.lvd142m" for letter, size in LETTERS.items()},
    **{f"dinov3_vit{letter}16": f"timm:vit_{LETTERS[letter]}_patch16_dinov3.lvd1689m" for letter in "sbl"},
    **{f"dino_vit{s}{p}": f"timm:vit_{LETTERS[s]}_patch{p}_224.dino" for s in "sb" for p in (8, 16)},
    **{f"deit_{size}_patch16_224": f"timm:deit_{size}_patch16_224.fb_in1k" for size in ("tiny", "small", "base")},
}
OPENAI: Mapping[str, str] = {
    "ViT-B/32": "open_clip:ViT-B-32-quickgelu/openai", "ViT-B/16": "open_clip:ViT-B-16-quickgelu/openai",
    "ViT-L/14": "open_clip:ViT-L-14-quickgelu/openai", "ViT-L/14@336px": "open_clip:ViT-L-14-336-quickgelu/openai",
    **{name: f"open_clip:{name}-quickgelu/openai" for name in ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")},
}  # fmt: skip
"""Names of the package `clip`."""

TORCHVISION: Mapping[str, str] = {
    **{name: f"timm:{name}.tv_in1k" for name in (
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
        "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2", "densenet121", "densenet161", "densenet169",
        "densenet201", "inception_v3", "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn",
    )},
    **{f"regnet_y_{mega}mf": f"timm:regnety_{ours}.tv2_in1k" for mega, ours in (("400", "004"), ("800", "008_tv"))},
    **{f"regnet_y_{giga}gf": f"timm:regnety_{ours}.tv2_in1k" for giga, ours in (("1_6", "016"), ("3_2", "032"), ("8", "080_tv"), ("16", "160"), ("32", "320"))},
    **{f"regnet_x_{mega}mf": f"timm:regnetx_{ours}.tv2_in1k" for mega, ours in (("400", "004_tv"), ("800", "008"))},
    **{f"regnet_x_{giga}gf": f"timm:regnetx_{ours}.tv2_in1k" for giga, ours in (("1_6", "016"), ("3_2", "032"), ("8", "080"), ("16", "160"), ("32", "320"))},
}  # fmt: skip
"""Names of torchvision whose weights timm has: those of its first training, IMAGENET1K_V1, where there are two."""
SECOND = (
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
"""Names of torchvision whose IMAGENET1K_V2 timm has, as the tag tv2_in1k."""
ALIKE: Mapping[str, str] = {
    "vit_b_16": "timm:vit_base_patch16_224", "vit_b_32": "timm:vit_base_patch32_224", "vit_l_16": "timm:vit_large_patch16_224",
    "swin_t": "timm:swin_tiny_patch4_window7_224", "swin_s": "timm:swin_small_patch4_window7_224",
    "swin_b": "timm:swin_base_patch4_window7_224", "mobilenet_v2": "timm:mobilenetv2_100",
    "mobilenet_v3_large": "timm:mobilenetv3_large_100", "mobilenet_v3_small": "timm:mobilenetv3_small_100",
    "efficientnet_v2_s": "timm:efficientnetv2_rw_s", "google/mobilenet_v2_1.0_224": "timm:mobilenetv2_100",
    **{f"google/efficientnet-b{n}": f"timm:tf_efficientnet_b{n}" for n in range(8)},
}  # fmt: skip
"""Names elsewhere of an architecture that timm has with other weights."""

PREFIXES = re.compile(
    r"^(?:timm|open_clip|hf[-_]hub|hf|huggingface|transformers|torch[._-]?hub|torchvision|clip|openai|open_clip|https?|facebookresearch)"
    r"(?::|/(?=[^/]+:))(?://)?(?:huggingface\.co/)?"
)
"""What people put before such a name."""


def describe_foreign(name: str) -> str:
    """Return what a name of a model elsewhere stands for here, as a sentence with the name to give; "" where it is not known."""
    bare = _bare(name)
    if found := _same_weights(bare):
        return f"{bare} is the name of these weights elsewhere; here they are {found}. Give --backbone {found}."
    if found := {key.lower(): here for key, here in ALIKE.items()}.get(_of_torchvision(bare)[0]):
        return (
            f"{bare} is the name of an architecture elsewhere, which timm has with other weights: {found}. Give --backbone "
            f"{found}, or that and --weights FILE."
        )
    owner, slash, model = bare.partition("/")
    if slash and owner == "timm":
        return f"{bare} is a repository of timm's own; give its name without the owner: --backbone timm:{model}."
    return ""


def _bare(name: str) -> str:
    """Return a name without the sources and addresses that people put before it."""
    before = ""
    while before != name:
        before, name = name, PREFIXES.sub("", name)
    return re.sub(r"^(?:dinov2|dino|deit|clip|vision)(?::main)?[:,]", "", name).strip("/")


def _same_weights(name: str) -> str | None:
    lower = name.lower()
    for table in (TRANSFORMERS, TORCH_HUB, OPENAI):
        if found := {key.lower(): here for key, here in table.items()}.get(lower):
            return found
    unowned = {key.partition("/")[2].lower(): here for key, here in TRANSFORMERS.items()}
    if found := unowned.get(lower) or open_clip_repositories().get(lower):
        return found
    model, version = _of_torchvision(name)
    found = {key.lower(): here for key, here in TORCHVISION.items()}.get(model)
    return found.replace(".tv_", ".tv2_") if found and version == 2 and model in SECOND else found


def _of_torchvision(name: str) -> tuple[str, int]:
    """Return the model of torchvision and the version of its weights, of names such as ResNet50_Weights.IMAGENET1K_V2."""
    model, _, weights = name.lower().partition(".")
    if weights not in ("", "default", "imagenet1k_v1", "imagenet1k_v2"):
        return "", 0
    return model.removesuffix("_weights"), 2 if weights in ("default", "imagenet1k_v2") else 1


@cache
def open_clip_repositories() -> Mapping[str, str]:
    """Return repository of the hub, in small letters -> the name here, of all whose weights open_clip knows."""
    return {repository.lower(): here for repository, here in _repositories()}


def _repositories() -> Iterator[tuple[str, str]]:
    import open_clip

    for architecture, tag in sorted(open_clip.list_pretrained(), key=lambda pair: "quickgelu" in pair[0]):
        config = open_clip.get_pretrained_cfg(architecture, tag)
        repository = str(config.get("hf_hub") or "").rpartition("/")[0]
        # weights that were trained with QuickGELU are told by the configuration that computes it, which comes last
        if repository and (config.get("quick_gelu") or "quickgelu" not in architecture):
            yield repository, f"open_clip:{architecture}/{tag}"
