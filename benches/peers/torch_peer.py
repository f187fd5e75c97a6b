"""PyTorch: answers `WORK COUNT` lines on stdin with the seconds of each repetition, as JSON.

`torch_peer.py eager|fused|compile`: Adam one operation at a time, Adam as one fused kernel, or the whole
training step's forward and backward through torch.compile (and the eager Adam, as its authors show it).
"""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

THREADS = 2
torch.set_num_threads(THREADS)
torch.manual_seed(0)
KIND = sys.argv[1]


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        n, t, f = x.shape
        q, k, v = (
            part.view(n, t, self.heads, f // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(f, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(n, t, f))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    def __init__(self, vocabulary=128, context=64, width=128, heads=4, layers=2):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(context, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.tokens(x) + self.positions)))


def mlp():
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10),
    )


def training(model, inputs, targets, sgd=False):
    if sgd:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=KIND == "fused" or None)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=KIND == "fused" or None)

    def loss_of(x, y):
        out = model(x)
        return F.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1))

    forward = torch.compile(loss_of) if KIND == "compile" else loss_of

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = forward(inputs, targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def classes(*shape, of=10):
    return torch.randint(0, of, shape)


def operation(function, *arguments):
    run = torch.compile(function) if KIND == "compile" else function

    def step():
        with torch.no_grad():
            run(*arguments)

    return step


def adam():
    parameter = torch.nn.Parameter(torch.randn(10_000_000))
    parameter.grad = torch.randn(10_000_000)
    optimizer = torch.optim.Adam([parameter], lr=1e-3, fused=KIND == "fused" or None)
    return optimizer.step


def matmul(n):
    return operation(torch.matmul, torch.randn(n, n), torch.randn(n, n))


def rows():
    return torch.randn(4096, 512)


WORK = {
    "W1": lambda: training(mlp(), torch.randn(128, 784), classes(128)),
    "W2": lambda: training(mlp(), torch.randn(32, 784), classes(32)),
    "W3": lambda: training(cnn(), torch.randn(64, 1, 28, 28), classes(64)),
    "W4": lambda: training(Decoder(), classes(16, 64, of=128), classes(16, 64, of=128)),
    "tiny": lambda: training(
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)),
        torch.randn(8, 8), classes(8, of=2), sgd=True,
    ),
    "matmul-512": lambda: matmul(512),
    "matmul-1024": lambda: matmul(1024),
    "matmul-2048": lambda: matmul(2048),
    "tanh": lambda: operation(
        lambda a, b, c: torch.tanh(a * b + c), *(torch.randn(1 << 20) for _ in range(3))
    ),
    "softmax": lambda: operation(lambda x: torch.softmax(x, -1), rows()),
    "layer-norm": lambda: operation(
        lambda x, w, b: F.layer_norm(x, (512,), w, b), rows(), torch.randn(512), torch.randn(512)
    ),
    "sum-last": lambda: operation(lambda x: x.sum(-1), rows()),
    "sum-first": lambda: operation(lambda x: x.sum(0), rows()),
    "adam": adam,
}

ready = {}
print(json.dumps({"version": f"PyTorch {torch.__version__}"}), flush=True)
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
