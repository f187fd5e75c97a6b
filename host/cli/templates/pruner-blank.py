"""Pruner: the smallest weights go, all at once in the middle of the round.

Put the paper and its equation here, and say where this differs and why.
"""

from math import prod

from espalier import Option, Pruner, Refusal, parameters, plugin, tensors


@plugin(name="__NAME__", version="0.1.0")
class __TYPE__(Pruner):
    """The smallest weights of each layer go in the middle of the round"""

    events = ["step"]

    sparsity = Option(0.8, min=0, max=1, doc="Fraction of the prunable weights that are 0 at the end.")

    def start(self, run):
        self.at = max(run.steps // 2, 1)
        self.set = parameters.main()
        weight = parameters.Kind.WEIGHT
        self.weights = [p for p in parameters.list(self.set) if p.kind == weight and p.trainable]
        if not self.weights:
            raise Refusal("there is no weight to prune")

    def on_event(self, event):
        if event.at.step == self.at:
            for info in self.weights:
                self.prune(info)

    def prune(self, info):
        """The decision: how many weights of a tensor live, and which."""
        count = prod(info.shape)
        keep = max(count - round(self.sparsity * count), 1)
        scores = parameters.value(self.set, info.name).detach().abs().reshape([-1])
        _, places = scores.top_k(keep, 0)
        ones = tensors.full(places.shape, 1.0, tensors.Dtype.F32)
        mask = tensors.full([count], 0.0, tensors.Dtype.F32).scatter_add(places, ones, 0)
        parameters.set_mask(self.set, info.name, mask.reshape(info.shape), False)
