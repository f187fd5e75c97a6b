"""JAX under jit: answers `WORK COUNT` lines on stdin with the seconds of each repetition, as JSON.

The whole training step (forward, gradients, Adam) is one jitted function that gives its parameters back
(donated), as JAX programs are written; networks as in torch_peer.py.
"""

import json
import os
import sys
import time

THREADS = 2
os.environ["XLA_FLAGS"] = (
    f"--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={THREADS}"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from functools import partial

random = np.random.default_rng(0)


def normal(*shape, scale=1.0):
    return jnp.asarray(random.standard_normal(shape, dtype=np.float32) * np.float32(scale))


def classes(*shape, of=10):
    return jnp.asarray(random.integers(0, of, shape, dtype=np.int32))


def dense(inputs, outputs):
    return {"w": normal(inputs, outputs, scale=inputs**-0.5), "b": jnp.zeros(outputs)}


def apply(p, x):
    return x @ p["w"] + p["b"]


def cross_entropy(logits, y):
    logits = logits.reshape(-1, logits.shape[-1])
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), y.reshape(-1, 1), axis=1)
    return -chosen.mean()


def mlp_parameters(*sizes):
    return [dense(a, b) for a, b in zip(sizes, sizes[1:])]


def mlp(p, x):
    for layer in p[:-1]:
        x = jax.nn.relu(apply(layer, x))
    return apply(p[-1], x)


def conv(p, x):
    y = jax.lax.conv_general_dilated(x, p["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + p["b"]


def pool(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def cnn_parameters():
    return [
        {"w": normal(3, 3, 1, 32, scale=0.3), "b": jnp.zeros(32)},
        {"w": normal(3, 3, 32, 64, scale=0.06), "b": jnp.zeros(64)},
        dense(1600, 128),
        dense(128, 10),
    ]


def cnn(p, x):
    x = pool(jax.nn.relu(conv(p[0], x)))
    x = pool(jax.nn.relu(conv(p[1], x)))
    return mlp(p[2:], x.reshape(x.shape[0], -1))


def layer_norm(p, x):
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["w"] + p["b"]


def norm_parameters(width):
    return {"w": jnp.ones(width), "b": jnp.zeros(width)}


def decoder_parameters(width=128, vocabulary=128, context=64):
    block = lambda: {
        "norm1": norm_parameters(width), "norm2": norm_parameters(width),
        "qkv": dense(width, 3 * width), "out": dense(width, width),
        "up": dense(width, 4 * width), "down": dense(4 * width, width),
    }
    return {
        "tokens": normal(vocabulary, width), "positions": normal(context, width, scale=0.02),
        "blocks": [block(), block()], "norm": norm_parameters(width), "head": dense(width, vocabulary),
    }


def decoder(p, x, heads=4):
    x = p["tokens"][x] + p["positions"]
    n, t, f = x.shape
    mask = jnp.tril(jnp.ones((t, t), bool))
    for b in p["blocks"]:
        q, k, v = (
            part.reshape(n, t, heads, f // heads).transpose(0, 2, 1, 3)
            for part in jnp.split(apply(b["qkv"], layer_norm(b["norm1"], x)), 3, axis=-1)
        )
        scores = jnp.where(mask, q @ k.transpose(0, 1, 3, 2) * (f // heads) ** -0.5, -jnp.inf)
        y = (jax.nn.softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(n, t, f)
        x = x + apply(b["out"], y)
        y = jax.nn.gelu(apply(b["up"], layer_norm(b["norm2"], x)), approximate=False)
        x = x + apply(b["down"], y)
    return apply(p["head"], layer_norm(p["norm"], x))


def adam_update(p, g, m, v, step):
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
    size = 1e-3 * jnp.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    p = jax.tree.map(lambda p, m, v: p - size * m / (jnp.sqrt(v) + 1e-8), p, m, v)
    return p, m, v


def training(network, parameters, inputs, targets, sgd=False):
    # The data go in as arguments: constants would be folded.
    @partial(jax.jit, donate_argnums=(0, 1, 2, 3))
    def update(p, m, v, step, x, y):
        loss, g = jax.value_and_grad(lambda p: cross_entropy(network(p, x), y))(p)
        if sgd:
            return jax.tree.map(lambda p, g: p - 0.01 * g, p, g), m, v, step, loss
        p, m, v = adam_update(p, g, m, v, step)
        return p, m, v, step + 1, loss

    zeros = lambda: jax.tree.map(jnp.zeros_like, parameters) if not sgd else None
    state = [parameters, zeros(), zeros(), jnp.float32(1)]

    def step():
        *state[:], loss = update(*state, inputs, targets)
        return float(loss)

    return step


def operation(function, *arguments):
    function = jax.jit(function)
    return lambda: function(*arguments).block_until_ready()


def adam():
    @partial(jax.jit, donate_argnums=(0, 2, 3))
    def update(p, g, m, v, step):
        return adam_update(p, g, m, v, step)

    n = 10_000_000
    g, state, count = normal(n), [normal(n), jnp.zeros(n), jnp.zeros(n)], [1.0]

    def step():
        state[:] = update(state[0], g, state[1], state[2], count[0])
        count[0] += 1
        state[0].block_until_ready()

    return step


def matmul(n):
    return operation(jnp.matmul, normal(n, n), normal(n, n))


def rows():
    return normal(4096, 512)


WORK = {
    "W1": lambda: training(mlp, mlp_parameters(784, 512, 512, 10), normal(128, 784), classes(128)),
    "W2": lambda: training(mlp, mlp_parameters(784, 512, 512, 10), normal(32, 784), classes(32)),
    "W3": lambda: training(cnn, cnn_parameters(), normal(64, 28, 28, 1), classes(64)),
    "W4": lambda: training(decoder, decoder_parameters(), classes(16, 64, of=128), classes(16, 64, of=128)),
    "tiny": lambda: training(mlp, mlp_parameters(8, 16, 2), normal(8, 8), classes(8, of=2), sgd=True),
    "matmul-512": lambda: matmul(512),
    "matmul-1024": lambda: matmul(1024),
    "matmul-2048": lambda: matmul(2048),
    "tanh": lambda: operation(lambda a, b, c: jnp.tanh(a * b + c), *(normal(1 << 20) for _ in range(3))),
    "softmax": lambda: operation(jax.nn.softmax, rows()),
    "layer-norm": lambda: operation(
        lambda x, w, b: layer_norm({"w": w, "b": b}, x), rows(), normal(512), normal(512)
    ),
    "sum-last": lambda: operation(lambda x: x.sum(-1), rows()),
    "sum-first": lambda: operation(lambda x: x.sum(0), rows()),
    "adam": adam,
}

ready = {}
print(json.dumps({"version": f"JAX {jax.__version__}"}), flush=True)
for line in sys.stdin:
    name, count = line.split()
    try:
        if name not in ready:
            ready[name] = WORK[name]()
            for _ in range(5):
                ready[name]()
        step = ready[name]
        for _ in range(2):
            step()
        times = []
        for _ in range(int(count)):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        print(json.dumps({"times": times}), flush=True)
    except Exception as error:  # named in the table as missing
        print(json.dumps({"missing": f"{type(error).__name__}: {error}"[:300]}), flush=True)
