"""A pruner that stops a run after some steps, counting them, or makes the mistake that its option names."""

from espalier import Option, Pruner, Refusal, plugin, stop


@plugin(name="stumbling", version="0.1.0")
class Stumbling(Pruner):
    """Stops after some steps, or makes a mistake"""

    events = ["step"]
    saved = ["seen"]

    mistake = Option("none", choices=["none", "refusal", "exception", "shape"], doc="The mistake to make.")
    steps = Option(7, min=1, doc="Events after which it stops the run or stumbles.")

    def start(self, run):
        if self.mistake == "refusal":
            raise Refusal(f"this plugin wants no run of {run.steps} steps")
        self.seen = 0

    def on_event(self, event):
        self.seen += 1
        if self.mistake == "exception" and self.seen == self.steps:
            return {}["nowhere"]
        if self.mistake == "shape":
            from espalier import tensors
            tensors.full([2], 0.0, tensors.Dtype.F32) + tensors.full([3], 0.0, tensors.Dtype.F32)
        print("seen", self.seen)
        return stop() if self.seen == self.steps else None
