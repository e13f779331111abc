"""Where small networks stand at a branch x + drop(scale(core(norm(x)))), and what of it they see.

parallel  x + drop(scale(core(norm(x)))) + drop(scale(network(x or norm(x)))), with draws of its own
after     x + drop(scale(core + network(core))), core being core(norm(x))
before    x + drop(scale(core(network(norm(x)))))
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from featurecache.peft._blocks import Branch
from featurecache.peft._injection import Held, Injection, Part

Place = Literal["none", "parallel", "after", "before"]
Reads = Literal["stream", "norm"]


class Network(Part):
    """(B, T, D) -> (B, T, D), small; `stand` puts it at a branch."""

    def stand(
        self, put: Injection, branch: Branch, place: Place, *, reads: Reads = "norm", twice: bool = False
    ) -> None:
        """Act at `place`; `twice` scales and drops what comes after the core a second time, as the study's code does."""
        self.held, self.branch, self.reads = Held(), (branch,), reads
        if place == "parallel":
            put.after(branch.norm, self.look)
            put.after(branch.drop, self.join)
        elif place == "after":
            put.after(branch.drop if twice else branch.core, self.follow_dropped if twice else self.follow)
        elif place == "before":
            put.before(branch.core, self.forward)

    def look(self, given: Tensor, found: Tensor) -> Tensor:
        """Compute what is to be added, where the norm shows its input and output; these stay what they are."""
        self.held.put(self(given if self.reads == "stream" else found))
        return found

    def join(self, given: Tensor, found: Tensor) -> Tensor:
        """Add it."""
        return found + self.branch[0].ended(self.held.take())

    def follow(self, given: Tensor, found: Tensor) -> Tensor:
        """Come after the core."""
        added: Tensor = self(found)
        return found + added

    def follow_dropped(self, given: Tensor, found: Tensor) -> Tensor:
        """Come after the whole branch, and send all of it through scale and drop path again."""
        return self.branch[0].ended(self.follow(given, found))
