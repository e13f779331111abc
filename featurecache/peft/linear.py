"""The linear baseline of the PEFT study: nothing of the backbone is trained. Another name of `none`."""

from __future__ import annotations

from featurecache.peft.none import LEARNING_RATE, apply

__all__ = ["LEARNING_RATE", "apply"]
