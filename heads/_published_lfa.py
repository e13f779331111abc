"""Parameter names of the published code of LFA, of which there are two: few-shot, and domain generalisation.

Few-shot has (out, in) matrices, and those of an adapter; domain generalisation has for each map a matrix `origin`, which is
(in, out), and with a rank `down` and `up`, (out, in). A point in a name is as good as an underscore, and `.weight` at its
end says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

HEAD = "lfa_clip"
OPTIONAL = ("adapter.",)
"""A run of `clip_adapter` may have brought it."""

FEW_SHOT = {
    "Wq_img": "image.query", "Wk_img": "image.key", "Wv_img": "image.value",
    "Wq_txt_self": "text_self.query", "Wk_txt_self": "text_self.key", "Wv_txt_self": "text_self.value",
    "Wk_txt_cross": "text_cross.key", "Wv_txt_cross": "text_cross.value",
    "adapter_w_down": "adapter.down", "adapter_w_up": "adapter.up",
}  # fmt: skip
DG = {
    "visual_self_Q": "image.query", "visual_self_K": "image.key", "visual_self_V": "image.value",
    "textual_self_Q": "text_self.query", "textual_self_K": "text_self.key", "textual_self_V": "text_self.value",
    "textual_cross_K": "text_cross.key", "textual_cross_V": "text_cross.value",
}  # fmt: skip
PARTS = {"origin": "weight", "down": "down.weight", "up": "up.weight"}
"""Part of a map of domain generalisation, there and here."""

HERE = {
    **{there: f"{here}.weight" for there, here in FEW_SHOT.items()},
    **{f"{there}_{part}": f"{here}.{own}" for there, here in DG.items() for part, own in PARTS.items()},
}


def ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the values of a published state by the names they have in the head; other tensors, as CLIP's, are left out."""
    known = {name.removesuffix(".weight").replace(".", "_"): value for name, value in state.items()}
    return {HERE[name]: value.T if name.endswith("_origin") else value for name, value in known.items() if name in HERE}


def theirs(name: str, few_shot: bool) -> str:
    """Return what the published code of one of its two forms calls a value of the head."""
    both = [there for there, here in HERE.items() if here == name]
    return next(there for there in both if (there in FEW_SHOT) == few_shot)
