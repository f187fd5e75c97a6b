"""Write an Espalier plugin in Python.

A plugin is one class with options as class attributes, decorated with `plugin`:

    from espalier import Normalizer, Option, groups, plugin

    @plugin(name="relative", version="0.1.0")
    class Relative(Normalizer):
        "Rewards relative to the mean of their group."

        scale = Option(1.0, min=0, doc="What a reward above the mean is multiplied with.")

        def normalize(self, batch):
            advantages = [0.0] * len(batch)
            for places in groups(batch):
                mean = sum(batch[i].reward for i in places) / len(places)
                for i in places:
                    advantages[i] = self.scale * (batch[i].reward - mean)
            return advantages

`espalier plugin build` makes a WebAssembly component of it with componentize-py. In the component there are
no files, no network and no clock; Python's `random` gives the same numbers in every run, so take random
numbers from `espalier.random`, which are keyed by the run's seed.

The interface itself, as wit/ has it, is in the modules `tensors`, `parameters`, `data`, ... that this module
passes on where the plugin's slot is granted them; `espalier plugin build` leaves their typed stubs in
build/typings for editors.
"""

from __future__ import annotations

import io
import json
import linecache
import sys
import traceback
from importlib import import_module
from math import inf
from typing import TYPE_CHECKING, Any, Iterable, Sequence

from componentize_py_types import Err
from wit_world.imports import options as _options

if TYPE_CHECKING:
    from wit_world.imports import autograd, data, log, model, optim, parameters, random, random_tensors
    from wit_world.imports import rewards, rollouts, run, tensors
    from wit_world.imports.parameters import ParameterSet
    from wit_world.imports.rewards import Rollout
    from wit_world.imports.tensors import Tensor

__all__ = [
    "Environment", "Mdp", "Normalizer", "Option", "Pruner", "Refusal", "Trainer", "TrackingNormalizer",
    "advantage", "groups", "plugin",
]

# Which interfaces a component imports follows from its world; a normaliser has no tensors, for example.
_INTERFACES = [
    "autograd", "capture", "control", "data", "data_publish", "fft", "log", "model", "model_adopt", "optim", "parameters",
    "random", "random_tensors", "rewards", "rollouts", "run", "tensors",
]
for _name in _INTERFACES:
    try:
        globals()[_name] = import_module(f"wit_world.imports.{_name}")
        __all__.append(_name)
    except ImportError:
        pass


class Refusal(Exception):
    """A refusal in words for whoever wrote the run file: what was expected, what was found.

    `code` is one of invalid-option, incompatible, invalid-state and other.
    """

    def __init__(self, message: str, code: str = "incompatible"):
        super().__init__(message)
        self.message, self.code = message, code

    def _wire(self):
        code = run.ErrorCode[self.code.replace("-", "_").upper()]
        return Err(run.Error(code=code, message=self.message))


class Option:
    """An option that a run file may set under `[SLOT.with]`; on an instance, its value.

    The type follows from `default`: bool, int, float, str, or a list of floats. `min` and `max` bound numbers,
    `choices` lists the words that are allowed. `doc` is one line for the reader of `espalier plugin inspect`.
    An attribute `every_steps` is `every-steps` in a run file.
    """

    def __init__(self, default, *, doc: str, min: float | None = None, max: float | None = None,
                 choices: Sequence[str] | None = None, live: bool = False):
        if not doc.strip():
            raise TypeError("an option needs a doc: one line that says what it does")
        if choices is not None and default not in choices:
            raise TypeError(f"the default {default!r} is not one of the choices {list(choices)}")
        numbers = default if isinstance(default, list) else [default]
        for number in numbers:
            if isinstance(number, (bool, str)):
                continue
            if (min is not None and number < min) or (max is not None and number > max):
                raise TypeError(f"the default {default!r} is not between {min} and {max}")
        self.default, self.doc, self.min, self.max = default, doc, min, max
        self.choices, self.live = choices, live

    def __set_name__(self, owner, name):
        self.name = name.replace("_", "-")

    if TYPE_CHECKING:
        def __get__(self, instance, owner) -> Any: ...

    def _set(self, instance, value):
        """Gives an instance its value, or refuses it. The host checks before, but the host need not be ours."""
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        allowed = "a list of numbers" if kind is list else f"a value of type {kind.__name__}"
        fits = type(value) is kind
        if fits and self.choices is not None:
            allowed, fits = f"one of {', '.join(self.choices)}", value in self.choices
        elif fits and kind in (int, float, list):
            low, high = (-inf if self.min is None else self.min), (inf if self.max is None else self.max)
            allowed = f"from {low} to {high}"
            fits = all(low <= number <= high for number in (value if kind is list else [value]))
        if not fits:
            raise Refusal(f"option `{self.name}` must be {allowed}, not {value!r}", "invalid-option")
        setattr(instance, self.name.replace("-", "_"), value)

    def _wire(self):
        kinds = {bool: "Flag", int: "Integer", float: "Number", str: "Text", list: "Numbers"}
        kind = kinds.get(type(self.default))
        if kind is None:
            raise TypeError(f"option {self.name}: {type(self.default).__name__} is no type of an option")
        value = getattr(_options, f"Value_{kind}")(self.default)
        described = getattr(_options, f"Kind_{kind}")
        described = _options.Kind_Choice(list(self.choices)) if self.choices else described()
        number = lambda x: None if x is None else float(x)
        return _options.OptionInfo(self.name, described, value, number(self.min), number(self.max), self.doc, self.live)


class _Plugin:
    """What all slots share."""

    events: Sequence[str] = ()
    """Event kinds a pruner wants: `step`, `epoch`, `round`, `stage`; empty for all."""
    saved: Sequence[str] = ()
    """Attributes to be remembered in a checkpoint: numbers, texts, lists and dictionaries of them."""

    def start(self, run) -> None:
        """Called once before the first step, with the options in place. Raise `Refusal` where the run is of a
        kind that this plugin cannot work with."""

    def save(self) -> bytes:
        """What `restore` gets on a resume; by default the attributes named in `saved`."""
        if not self.saved:
            return b""
        return json.dumps({name: getattr(self, name) for name in self.saved}).encode()

    def restore(self, state: bytes) -> None:
        """Called after `start` with what `save` gave."""
        if self.saved:
            try:
                for name, value in json.loads(state).items():
                    setattr(self, name, value)
            except ValueError as error:
                raise Refusal(f"the saved state cannot be read: {error}", "invalid-state") from None


class Pruner(_Plugin):
    """A pruning policy: says which weights live."""

    def on_event(self, event):
        """After the trainer's update. Returns `espalier.go_on()`, `stop()`, `rewind(tag)`, or None to go on."""
        raise NotImplementedError


class Normalizer(_Plugin):
    """A reward normaliser: says what a reward is worth."""

    def normalize(self, batch: list[Rollout]) -> list:
        """One advantage for each rollout, in their order: a number, or what `advantage` gives."""
        raise NotImplementedError


class TrackingNormalizer(Normalizer):
    """A normaliser that hears how far the policy has moved, and weighs prompts."""

    def observe(self, drifts) -> None:
        """After the update that followed `normalize`."""
        raise NotImplementedError

    def prompt_weights(self, prompts: list[int]) -> list[float]:
        """How often each prompt should be drawn, in proportion."""
        raise NotImplementedError


class Trainer(_Plugin):
    """A training algorithm. The methods are those of the interface `training`."""

    def step(self, at):
        """One step; returns `run.StepReport`."""
        raise NotImplementedError

    def objective(self, batch):
        """Per-sample losses [count], tracked; no update."""
        raise NotImplementedError

    def predict(self, batch):
        """Predictions for a batch; returns a case of `model.Prediction`."""
        raise NotImplementedError


class Environment(_Plugin):
    """Prompts and verdicts. The methods are those of the interface `tasks`: spec, splits, prompts, verify."""


class Mdp(_Plugin):
    """A world to act in. The methods are those of the interface `mdp`: spec, reset, step; save is needed too."""


def go_on():
    """The directive to continue."""
    return run.Directive_Continue()


def stop():
    """The directive to end the stage."""
    return run.Directive_Stop()


def rewind(tag: str):
    """The directive to begin another round from a tag of the run's parameter set."""
    return run.Directive_Rewind(tag)


def advantage(*values: float, keep: bool = True):
    """An advantage: one number for all tokens or one for each segment; `keep=False` leaves the rollout out."""
    return rewards.Advantage(values=[float(v) for v in values], keep=keep)


def groups(batch: Iterable[Rollout]) -> list[list[int]]:
    """The places of the rollouts of each group, in the order in which groups first appear."""
    found: dict[int, list[int]] = {}
    for place, rollout in enumerate(batch):
        found.setdefault(rollout.group, []).append(place)
    return list(found.values())


def plugin(*, name: str, version: str):
    """Makes the decorated class the plugin of its module. Its docstring's first line is the summary."""

    def decorate(cls):
        options = [o for o in vars(cls).values() if isinstance(o, Option)]
        summary = (cls.__doc__ or "").strip().split("\n")[0]
        if not summary:
            raise TypeError(f"{cls.__name__} needs a docstring: one sentence that says what it does")
        module = sys.modules[cls.__module__]
        _remember_source(module.__file__)
        module.Plugin = _describing(name, version, summary, options, cls)
        slots = [("Training", Trainer), ("Pruning", Pruner), ("Normalizing", Normalizer),
                 ("Tracking", TrackingNormalizer), ("Tasks", Environment), ("Mdp", Mdp)]
        filled = [interface for interface, base in slots if issubclass(cls, base)]
        if not filled:
            raise TypeError(f"{cls.__name__} must be a Trainer, Pruner, Normalizer, Environment or Mdp")
        session: list[Any] = []
        for interface in filled:
            setattr(module, interface, _exported(interface, cls, options, session))
        return cls

    return decorate


def _describing(name, version, summary, options, cls):
    class Plugin:
        def describe(self):
            from wit_world.exports.plugin import Description
            return Description(name, version, summary, [o._wire() for o in options], list(cls.events))

    return Plugin


def _refusing(call):
    """Passes refusals on to the host, and tells the log of a mistake before it ends the run."""

    def wrapped(*arguments):
        try:
            return call(*arguments)
        except Refusal as refusal:
            raise refusal._wire() from None
        except Err:
            raise
        except Exception:
            log.message(log.Level.WARN, traceback.format_exc())
            # Or else the interpreter says the same once more, line by line.
            sys.stderr = None
            raise

    return wrapped


def _exported(interface: str, cls, options: list[Option], session: list):
    """The class of an exported interface; `session` holds the one plugin that all of them share."""

    class Exported:
        def __getattr__(self, name):
            if not session:
                raise RuntimeError(f"`{name}` was called before `start`")
            return _refusing(getattr(session[0], name))

        if interface != "Tracking":
            @_refusing
            def start(self, info, settings, *rest):
                made = cls()
                known = {option.name: option for option in options}
                for name, value in settings:
                    if name not in known:
                        raise Refusal(f"there is no option `{name}`; there are {', '.join(known)}", "invalid-option")
                    known[name]._set(made, value.value)
                if rest:
                    made.rewards = rest[0]
                made.start(info)
                session[:] = [made]

        if interface == "Pruning":
            @_refusing
            def on_event(self, event):
                directive = session[0].on_event(event)
                return go_on() if directive is None else directive

        if interface == "Normalizing":
            @_refusing
            def normalize(self, batch):
                found = session[0].normalize(batch)
                return [advantage(a) if isinstance(a, (int, float)) else a for a in found]

        if interface == "Training":
            @_refusing
            def set_knob(self, name, value):
                live = {option.name: option for option in options if option.live}
                if name not in live:
                    raise Refusal(f"`{name}` is no live option", "invalid-option")
                live[name]._set(session[0], value.value)

    Exported.__name__ = interface
    return Exported


def _attach_operators() -> None:
    """Tensors as in NumPy: `a + 1`, `a @ b`, `a < 0.5`, `a.abs()`, `a.shape`. Comparison by `==` stays that of
    handles; `a.equal(b)` compares elements."""
    wit = tensors
    handle = wit.Tensor

    def operand(x):
        return wit.Operand_Tensor(x) if isinstance(x, handle) else wit.Operand_Scalar(float(x))

    def binary(function):
        return (lambda a, b: function(operand(a), operand(b))), (lambda a, b: function(operand(b), operand(a)))

    operators = [("add", wit.add), ("sub", wit.subtract), ("mul", wit.multiply), ("truediv", wit.divide)]
    for name, function in operators:
        forward, reflected = binary(function)
        setattr(handle, f"__{name}__", forward)
        setattr(handle, f"__r{name}__", reflected)
    for name in ["maximum", "minimum", "equal", "less"]:
        setattr(handle, name, binary(getattr(wit, name))[0])
    handle.__lt__, handle.__gt__ = binary(wit.less)
    handle.__neg__ = lambda a: wit.multiply(operand(a), operand(-1.0))
    handle.__matmul__ = wit.matmul
    handle.shape = property(wit.shape)
    handle.dtype = property(wit.dtype_of)
    handle.tolist = wit.to_list
    handle.numel = property(lambda a: _product(wit.shape(a)))
    for name in ["item", "astype", "reshape", "permute_dims", "broadcast_to", "slice", "abs", "exp", "expm1",
                 "log", "sqrt", "sin", "cos", "acos", "tanh", "sigmoid", "relu", "gelu", "softplus", "argmax",
                 "cumulative_sum", "argsort", "top_k", "take", "take_along_axis", "scatter_add", "softmax",
                 "log_softmax", "cross_entropy", "matmul"]:
        setattr(handle, name, getattr(wit, name))
    handle.sum = lambda a, axes=(), keepdims=False: wit.sum(a, list(axes), keepdims)
    handle.mean = lambda a, axes=(), keepdims=False: a.sum(axes, keepdims) / (
        _product(a.shape) / max(1, _product(a.sum(axes).shape)))
    handle.max = lambda a, axis, keepdims=False: wit.max(a, axis, keepdims)
    if "autograd" in globals():
        handle.detach = autograd.detach
        handle.requires_grad = autograd.requires_grad


def _product(sizes: Iterable[int]) -> int:
    n = 1
    for size in sizes:
        n *= size
    return n


class _ToLog(io.TextIOBase):
    """What `print` writes goes to the run's log, a line at a time."""

    def __init__(self, level):
        self.level, self.line = level, ""

    def writable(self):
        return True

    def write(self, text):
        self.line += text
        *whole, self.line = self.line.split("\n")
        for line in whole:
            log.message(self.level, line)
        return len(text)


def _remember_source(file: str) -> None:
    """Keeps the lines of a file for tracebacks: later, in the component, there are no files to read."""
    with open(file, encoding="utf-8") as source:
        lines = source.readlines()
    linecache.cache[file] = (sum(map(len, lines)), None, lines, file)


_remember_source(__file__)
linecache.updatecache = lambda *_: []
linecache.checkcache = lambda *_: None
sys.stdout, sys.stderr = _ToLog(log.Level.INFO), _ToLog(log.Level.WARN)
if "tensors" in globals():
    _attach_operators()
