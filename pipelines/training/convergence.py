"""Whether a training that is over was still improving: a result of such a head says more of its length than of its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LAST_PART = 1 / 3
"""Of a training, in which a loss that falls is not yet at its end; a cosine schedule makes 6 % of its way there."""
OF_THE_FALL = 0.02
"""Share of the whole fall of the loss in that part below which training had come to rest."""
OF_THE_LOSS = 0.0005
"""Fall in that part, relative to what the loss ended at, below which more steps would not be seen."""


def is_improving(history: Sequence[Mapping[str, float]], best_epoch: int) -> bool:
    """Return whether the best epoch was the last, and the last third of the training a part of the fall of the loss.

    Args:
        history: one entry for every measured epoch: "epoch", and "val_loss" or, without validation, "train_loss".
        best_epoch: the epoch whose values were kept.
    """
    if len(history) < 2 or best_epoch != history[-1]["epoch"]:
        return False
    key = "val_loss" if "val_loss" in history[-1] else "train_loss"
    losses = {int(entry["epoch"]): entry[key] for entry in history if key in entry}
    last = max(losses)
    earlier = [epoch for epoch in losses if epoch <= last * (1 - LAST_PART)]
    if not earlier:  # one epoch, without validation: nothing to compare its loss with
        return True
    end, before, start = losses[last], losses[max(earlier)], losses[min(losses)]
    return before - end > max(OF_THE_FALL * (start - end), OF_THE_LOSS * abs(end))


def describe_improving(head: str, still: int, trials: int) -> str:
    """Return what a table says of a head that was still improving in so many of its trials, "" where it was in few."""
    if 2 * still <= trials:
        return ""
    where = f"in {still} of {trials} trials" if trials > 1 else "when training ended"
    return f"{head} was still improving {where}: its best epoch is the last one. Give more --epochs, or a higher --lr"
