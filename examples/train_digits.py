"""Train digits_resnet and write its weights: ``python examples/train_digits.py``.

SGD with a one-cycle schedule and small random shifts takes about a minute on 2 cores. Weights are
stored in half precision, which keeps the file small; sq measures the network with these values.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sq.core import closed_pipe
from sq.core.progress import track
from sq.dataset import digits, loading
from sq.model.digits_resnet import WEIGHTS, DigitsResNet, prepare

EPOCHS = 60
BATCH = 64
RATE = 0.1
WEIGHT_DECAY = 5e-4


@closed_pipe.quiet
def main() -> None:
    """Train, store the weights, and print the accuracy of the stored ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=WEIGHTS, help="file to write (default: the packaged one)"
    )
    parser.add_argument(
        "--every", type=int, default=3, help="must equal dataset.every (default: 3)"
    )
    parser.add_argument("--seed", type=int, default=1, help="(default: 1, the packaged weights)")
    options = parser.parse_args()
    data = digits.load(name="digits", every=options.every)
    train = loading.load(data.train, range(len(data.train.ids)), prepare, "images")
    test = loading.load(data.test, range(len(data.test.ids)), prepare, "images")
    torch.manual_seed(options.seed)
    net = DigitsResNet()
    fit(net, train.x, train.y, torch.Generator().manual_seed(options.seed))
    store(net, options.out)
    with torch.no_grad():
        accuracy = (net.eval()(test.x).argmax(1) == test.y).float().mean()
    size = options.out.stat().st_size / 1e6
    print(f"{options.out}: {size:.2f} MB, top-1 {100 * accuracy:.2f} on the test split")


def fit(net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
    """Train `net` on images `x` (B, 1, 8, 8) and labels `y` (B,)."""
    optimizer = torch.optim.SGD(
        net.parameters(), RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    batches = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * batches)
    for _ in track(range(EPOCHS), "train"):
        order = torch.randperm(len(x), generator=generator)[: batches * BATCH]
        for index in order.split(BATCH):
            logits = net(augment(x[index], generator))
            loss = nn.functional.cross_entropy(logits, y[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image (1, 8, 8) by up to one pixel in each direction."""
    shifts = torch.randint(-1, 2, (len(x), 2), generator=generator).tolist()
    padded = nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)
    shifted = []
    for image, (down, right) in zip(padded, shifts, strict=True):
        shifted.append(image[:, 1 + down : 9 + down, 1 + right : 9 + right])
    return torch.stack(shifted)


def store(net: nn.Module, file: Path) -> None:
    """Write the weights in half precision, and load the rounded ones into `net`."""
    state = {}
    for name, tensor in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            state[name] = tensor.half()
    save_file(state, file)
    file.chmod(0o644)
    net.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)


if __name__ == "__main__":
    main()
