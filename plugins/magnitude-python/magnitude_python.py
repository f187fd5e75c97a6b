"""Pruner: the smallest weights go bit by bit while the network trains; plugins/magnitude in Python.

Zhu and Gupta 2017, equation 1: s(t) = s_f (1 - (1 - (t - t_0) / (t_1 - t_0))^3), all weights compared with each
other. Counts are exact: a number of weights is kept, no threshold is compared. What is pruned stays pruned.
"""

from espalier import Option, Pruner, Refusal, log, parameters, plugin, tensors

BOOL = tensors.Dtype.BOOL
F32 = tensors.Dtype.F32


@plugin(name="magnitude-python", version="0.1.0")
class Magnitude(Pruner):
    """The smallest weights go bit by bit while the network trains, written in Python"""

    events = ["step"]

    sparsity = Option(0.9, min=0, max=1, doc="Fraction of the prunable weights that are 0 at the end.")
    begin = Option(0.1, min=0, max=1, doc="Where pruning begins, as a fraction of the round.")
    end = Option(0.7, min=0, max=1, doc="Where it has reached the sparsity; the rest of the round recovers.")
    every_steps = Option(20, min=1, doc="Steps between two prunings.")

    def start(self, run):
        if self.begin > self.end:
            raise Refusal(f"`begin` ({self.begin}) must not be after `end` ({self.end})", "invalid-option")
        self.first, self.last = (max(round(x * run.steps), 1) for x in (self.begin, self.end))
        self.set = parameters.main()
        weight = parameters.Kind.WEIGHT
        self.weights = [p for p in parameters.list(self.set) if p.kind == weight and p.trainable]
        if not self.weights:
            raise Refusal("there is no weight to prune")

    def on_event(self, event):
        step = event.at.step
        between = self.first < step < self.last and (step - self.first) % self.every_steps == 0
        if between or step == self.last:
            self.prune(step)

    def prune(self, step):
        sizes = [size(p.shape) for p in self.weights]
        total = sum(sizes)
        kept = total - round(self.sparsity_at(step) * total)
        scores = [self.score(p) for p in self.weights]
        # A weight of every tensor stays, so that no layer is cut through: its largest is out of the contest.
        everything = tensors.concat(scores, 0)
        largest = [s.argmax(0).item() for s in scores]
        offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        saved = tensors.from_list([o + i for o, i in zip(offsets, largest)], [len(sizes)], tensors.Dtype.I64)
        raised = everything.scatter_add(saved, tensors.full([len(sizes)], float("inf"), F32), 0)
        _, places = raised.top_k(max(kept, len(sizes)), 0)
        mask = tensors.full([total], 0.0, F32).scatter_add(places, tensors.full(places.shape, 1.0, F32), 0)
        for info, offset, count in zip(self.weights, offsets, sizes):
            own = mask.slice(0, offset, offset + count).reshape(info.shape).astype(BOOL)
            parameters.set_mask(self.set, info.name, own, False)
        if step == self.last:
            log.metric("alive", float(max(kept, len(sizes))))

    def score(self, info):
        """|w|, flat; below 0 where a weight is pruned already, so that it is not chosen again."""
        values = parameters.value(self.set, info.name).detach().abs().reshape([-1])
        mask = parameters.mask(self.set, info.name)
        return values if mask is None else values + (mask.reshape([-1]).astype(F32) - 1.0)

    def sparsity_at(self, step):
        """The cubic schedule: fast at first."""
        if step >= self.last:
            return self.sparsity
        done = (step - self.first) / (self.last - self.first)
        return self.sparsity * (1.0 - (1.0 - done) ** 3)


def size(shape):
    """How many elements a tensor of this shape has."""
    n = 1
    for length in shape:
        n *= length
    return n
