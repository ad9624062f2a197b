"""Train digits_resnet on the training split and write its weights: ``python -m sq.model.train_digits``.

SGD with a one-cycle schedule, small random shifts; about a minute on 2 cores. Weights are stored in
half precision, which keeps the file small; the network that sq measures is the one with the stored
values.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from sq.core import closed_pipe
from sq.core.progress import track
from sq.dataset import digits, loading
from sq.model.digits_resnet import WEIGHTS, DigitsResNet, prepare

EPOCHS, BATCH, RATE, DECAY = 60, 64, 0.1, 5e-4


@closed_pipe.quiet
def main() -> None:
    """Train, store, and print the accuracy of what was stored."""
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
    train, test = (
        loading.load(s, range(len(s.ids)), prepare, "images") for s in (data.train, data.test)
    )
    torch.manual_seed(options.seed)
    net = DigitsResNet()
    assert isinstance(train.y, Tensor)
    fit(net, train.x, train.y, torch.Generator().manual_seed(options.seed))

    from safetensors.torch import save_file

    state = {
        k: v.half() for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")
    }
    save_file(state, options.out)
    options.out.chmod(0o644)
    net.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    with torch.no_grad():
        right = (net.eval()(test.x).argmax(1) == test.y).float().mean()
    size = options.out.stat().st_size / 1e6
    print(f"{options.out}: {size:.2f} MB, top-1 {100 * right:.2f} on the test split")  # noqa: T201


def fit(net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
    """Train `net` on images `x` (B, 1, 8, 8) and labels `y` (B,)."""
    optimizer = torch.optim.SGD(
        net.parameters(), RATE, momentum=0.9, weight_decay=DECAY, nesterov=True
    )
    batches = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * batches)
    for _ in track(range(EPOCHS), "train"):
        for chosen in torch.randperm(len(x), generator=generator)[: batches * BATCH].split(BATCH):
            loss = nn.functional.cross_entropy(
                net(augment(x[chosen], generator)), y[chosen], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to one pixel each way."""
    shifts = torch.randint(-1, 2, (len(x), 2), generator=generator).tolist()
    padded = nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)
    return torch.stack(
        [p[:, 1 + dy : 9 + dy, 1 + dx : 9 + dx] for p, (dy, dx) in zip(padded, shifts, strict=True)]
    )


if __name__ == "__main__":
    main()
