"""Use an installed wheel from Python: sq.quantize on another network, sq.load of a run's file.

wheel_use.py --where ENVIRONMENT: whether sq comes from that environment, and no editable
installation is in the way.
"""

import sys
from pathlib import Path

import sq


def where(environment: str) -> None:
    """Assert that all of sq is what the wheel has installed."""
    from sq.core import paths

    inside = Path(environment).resolve()
    for file in (
        Path(sq.__file__),
        paths.CONF / "config.yaml",
        paths.EXPERIMENTS / "quickstart.yaml",
    ):
        assert inside in file.resolve().parents, file
        assert file.is_file(), file
    assert paths.CHECKOUT is None
    finders = [
        finder for finder in sys.meta_path if "editable" in getattr(finder, "__module__", "")
    ]
    assert not finders, finders
    assert not [name for name in sys.modules if name.startswith("__editable__")]
    print(f"sq {sq.__version__} of {Path(sq.__file__).parent}")


def use() -> None:
    """Quantize a small network, and load one that was exported."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    ).eval()
    images = torch.randn(64, 3, 6, 6)
    with torch.no_grad():
        exact, found = net(images), sq.quantize(net, images, "correction=none", bits=8)(images)
    error = float((found - exact).norm() / exact.norm())
    assert 0 < error < 0.05, error
    (file,) = Path("outputs", "runs").glob("*.sq.safetensors")
    with torch.no_grad():
        logits = sq.load(file)(torch.zeros(2, 1, 8, 8))
    assert logits.shape == (2, 10)
    assert bool(torch.isfinite(logits).all())
    print(f"sq.quantize: relative error {error:.4f}; sq.load: {file.name}")


if __name__ == "__main__":
    where(sys.argv[2]) if sys.argv[1:2] == ["--where"] else use()
