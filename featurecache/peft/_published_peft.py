"""Parameter names of the published code of the PEFT study: (ours, theirs).

{i} stands for the index of a block. What has no name here is called as the backbone calls it. Prompts and queries are one
table for all blocks there, a row for each block that has some.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from featurecache.peft._renaming import renamed_from, renamed_to

OWNER = "blocks.0.attn.fact."
"""Of FacT's shared parameters: its code registers them in every block, and lists them under the first."""

NAMES: tuple[tuple[str, str], ...] = (
    ("blocks.{i}.attn.lora.down.weight", "blocks.{i}.attn.lora.lora_a.weight"),
    ("blocks.{i}.attn.lora.up.weight", "blocks.{i}.attn.lora.lora_b.weight"),
    *(
        (f"blocks.{{i}}.{ours}_{kind}.{part}{value}", f"blocks.{{i}}.ft_{theirs}_module.{name}{value}")
        for ours, theirs in (("attention", "attn"), ("mlp", "mlp"))
        for kind, part, name in (
            ("adapter", "down", "down_proj"), ("adapter", "up", "up_proj"), ("bypass", "down", "adapter_down"),
            ("bypass", "conv", "adapter_conv"), ("bypass", "up", "adapter_up"), ("groups", "down", "conv_A"),
            ("groups", "up", "conv_B"),
        )
        for value in (".weight", ".bias")
    ),
    ("blocks.{i}.attention_adapter.scale", "blocks.{i}.ft_attn_module.scale"),
    ("blocks.{i}.mlp_adapter.scale", "blocks.{i}.ft_mlp_module.scale"),
    ("blocks.{i}.attention_factor.weight", "blocks.{i}.difffit_gamma1"),
    ("blocks.{i}.mlp_factor.weight", "blocks.{i}.difffit_gamma2"),
    *(
        (f"{ours}.{value}", theirs.format(value=value, i="{i}"))
        for ours, theirs in (
            ("patches_affine", "patch_embed.ssf_{value}_1"), ("patches_norm_affine", "patch_embed.ssf_{value}_2"),
            ("blocks.{i}.attention_norm_affine", "blocks.{i}.ssf_{value}_1"),
            ("blocks.{i}.mlp_norm_affine", "blocks.{i}.ssf_{value}_2"),
            ("blocks.{i}.attention_first_affine", "blocks.{i}.attn.ssf_{value}_qkv"),
            ("blocks.{i}.attention_last_affine", "blocks.{i}.attn.ssf_{value}_linear"),
            ("blocks.{i}.mlp_first_affine", "blocks.{i}.mlp.ssf_{value}_hidden"),
            ("blocks.{i}.mlp_last_affine", "blocks.{i}.mlp.ssf_{value}_out"), ("final_affine", "ssf_{value}"),
        )
        for value in ("scale", "shift")
    ),
    ("fact.down.weight", f"{OWNER}FacTu.weight"),
    ("fact.up.weight", f"{OWNER}FacTv.weight"),
    ("fact.tensor", f"{OWNER}FacTc"),
    ("fact.factors", f"{OWNER}FacTp"),
    *(
        (f"fact.cores.{{i}}.{ours}.weight", f"{OWNER}per_block_para.{{i}}.{theirs}.weight")
        for ours, theirs in (
            ("query", "attn.0"), ("key", "attn.1"), ("value", "attn.2"), ("proj", "attn.3"), ("fc1", "mlp.0"),
            ("fc2", "mlp.1"),
        )
    ),
    ("answers.mix.weight", "vqt.combine_layer.weight"),
)  # fmt: skip

TABLES: tuple[tuple[str, str], ...] = (
    ("blocks.{i}.prompts.values", "vpt.prompt_embeddings"),
    ("blocks.{i}.queries.values", "vqt.query_prompt_embeddings"),
)
"""The same for tables."""


def ours(state: Mapping[str, Tensor], kept: Collection[str]) -> dict[str, Tensor]:
    """Return a published state by the names it has in a module with the method, whose kept names are given."""
    return renamed_from(state, kept, NAMES, TABLES)


def theirs(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return values of a module with the method in the names of the published code."""
    return renamed_to(values, NAMES, TABLES)
