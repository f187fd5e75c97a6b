"""Normaliser: each reward less the mean of its group, A = R - mean.

Put the paper and its equation here, and say where this differs and why.
"""

from math import fsum

from espalier import Normalizer, Option, advantage, groups, plugin


def centered(rewards: list[float]) -> list[float]:
    """The decision: what each reward of a group is worth. Equal ones are worth exactly 0."""
    first = rewards[0]
    mean = first + fsum(r - first for r in rewards) / len(rewards)
    return [r - mean for r in rewards]


@plugin(name="__NAME__", version="0.1.0")
class __TYPE__(Normalizer):
    """Rewards less the mean of their group"""

    scale = Option(1.0, min=0, doc="What every advantage is multiplied by.")

    def normalize(self, batch):
        advantages = [advantage(0.0)] * len(batch)
        for places in groups(batch):
            values = centered([batch[i].reward for i in places])
            for i, value in zip(places, values):
                advantages[i] = advantage(self.scale * value)
        return advantages
