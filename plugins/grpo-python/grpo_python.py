"""Normaliser: rewards relative to their group, A = (R - mean) / (std + eps); plugins/grpo in Python.

GRPO: Shao et al. 2024 (arXiv 2402.03300), section 4.1.2, with the unbiased standard deviation (n - 1).
"""

from math import fsum, sqrt

from espalier import Normalizer, Option, advantage, groups, plugin


def relative(rewards: list[float], eps: float, scale: bool) -> list[float]:
    """The advantages of one group; equal rewards give exactly 0."""
    if all(r == rewards[0] for r in rewards):
        return [0.0] * len(rewards)
    mean = fsum(rewards) / len(rewards)
    spread = sqrt(fsum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) + eps if scale else 1.0
    return [(r - mean) / spread for r in rewards]


@plugin(name="grpo-python", version="0.1.0")
class Grpo(Normalizer):
    """Rewards relative to their group (GRPO), written in Python"""

    scale_by_deviation = Option(True, doc="Divides by the standard deviation of the group; false is Dr. GRPO.")
    eps = Option(1e-6, min=1e-12, doc="Added to the standard deviation, in units of reward.")
    drop_constant_groups = Option(
        False, doc="Leaves groups whose rewards are all equal out of the update, also where it counts."
    )

    def normalize(self, batch):
        advantages = [advantage(0.0)] * len(batch)
        for places in groups(batch):
            rewards = [batch[i].reward for i in places]
            constant = all(r == rewards[0] for r in rewards)
            for i, value in zip(places, relative(rewards, self.eps, self.scale_by_deviation)):
                advantages[i] = advantage(value, keep=not (constant and self.drop_constant_groups))
        return advantages
