"""What does autograd keep of a training step, by method: nothing before DTL's first injection, and less than LoRA, than full?

    python benchmarks/saved_bytes.py [--model vit_base_patch16_224] [--batch 32]

Counted on the device "meta", so that no model has to fit: hooks on what autograd saves, block by block, of one pass in
training mode. Attention is counted with its softmax written out. Nothing is timed; other programs do not disturb it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import timm
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _reporting import Ratio, conclude, markdown

from featurecache.backbones._skeletons import without_values
from featurecache.costs import Kept, kept_by
from featurecache.errors import BackboneError
from featurecache.peft import PEFT, adapt

MOST = 0.6
"""DTL over LoRA, at most."""


def kept(model: str, method: str, batch: int) -> tuple[Kept, int, int]:
    """Return (what a step keeps, trained parameters, first block whose output the method adds to or -1)."""
    with without_values():
        module = timm.create_model(model, num_classes=0)
    adapted = adapt(method, module, {})
    adapted.train(True)
    size = module.patch_embed.img_size
    found = kept_by(module, lambda: adapted.embed(torch.empty(batch, 3, *size, device="meta")))
    side = getattr(module, "dtl", None)
    first = min(side.places.injections) if side is not None else -1
    return found, sum(p.numel() for p in adapted.parameters().values()), first


def main() -> int:
    """Count for every method that the model can take; the table is for all, the limits for DTL, LoRA and full."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {}
    for name in PEFT.names():
        try:
            found[name] = kept(given.model, name, given.batch)
        except BackboneError as refused:
            print(f"{name}: {refused}", file=sys.stderr)
    rows = [
        (name, parameters, f"{all_.total / 2**20:.0f}", f"{all_.outside / 2**20:.0f}", *(f"{b / 2**20:.0f}" for b in all_.blocks))
        for name, (all_, parameters, _) in sorted(found.items(), key=lambda item: item[1][0].total)
    ]  # fmt: skip
    blocks = [str(number) for number in range(len(rows[0]) - 4)]
    print(markdown(("method", "trained", "MiB kept", "beside", *blocks), rows))
    ratios = [_free(name, *found[name]) for name in ("dtl", "dtl_plus")]
    ratios += [
        _against("dtl", "lora", found, MOST), _against("dtl_plus", "lora", found, MOST), _against("lora", "full", found, 1.0)
    ]  # fmt: skip
    title = f"bytes that a step keeps for the gradient: {given.model}, batch {given.batch}"
    return conclude(title, ratios, {"model": given.model, "batch": given.batch}, given.json)


def _free(name: str, all_: Kept, parameters: int, first: int) -> Ratio:
    before = sum(all_.blocks[: first + 1])
    return Ratio(
        what=f"{name}: bytes kept in blocks 0-{first}", against="all of them", value=before / all_.total, limit=0.0,
        bound="at most", figures={"bytes": before, "bytes of all": all_.total},
    )  # fmt: skip


def _against(one: str, other: str, found: dict[str, tuple[Kept, int, int]], limit: float) -> Ratio:
    ours, theirs = found[one][0].total, found[other][0].total
    return Ratio(
        what=one, against=other, value=ours / theirs, limit=limit, bound="at most",
        figures={"bytes": ours, f"bytes of {other}": theirs},
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
