"""The work of benches/step.rs in PyTorch on the CPU: median step of W1, W2 and W3, eager, with plain and fused Adam.

    python benches/peers/pytorch.py        # needs torch; 2 threads, as step.rs
"""

import statistics
import time

import torch
from torch import nn

THREADS = 2
STEPS, WARM_UP = 100, 20


def mlp():
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10),
    )


WORK = [
    ("W1 MLP 784-512-512-10, batch 128, Adam", mlp, 128, (784,)),
    ("W2 the same, batch 32", mlp, 32, (784,)),
    ("W3 CNN 1x28x28, batch 64, Adam", cnn, 64, (1, 28, 28)),
]


def median_step(make, batch, shape, fused):
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    data = torch.randn(2048, *shape)
    labels = torch.arange(2048) % 10
    times = []
    for step in range(STEPS + WARM_UP):
        began = time.perf_counter()
        rows = torch.randint(0, 2048, (batch,))
        loss = nn.functional.cross_entropy(model(data[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        if step >= WARM_UP:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def main():
    torch.set_num_threads(THREADS)
    print(f"PyTorch {torch.__version__}, {THREADS} threads; median of {STEPS} steps\n")
    print(f"{'work':45} {'eager':>10} {'fused Adam':>12}")
    for name, make, batch, shape in WORK:
        eager, fused = (median_step(make, batch, shape, f) * 1e6 for f in (False, True))
        print(f"{name:45} {eager:>7.0f} us {fused:>9.0f} us")


if __name__ == "__main__":
    main()
