import math

import pytest
import torch

from sq.errors import SqError
from sq.evaluation import agreement
from sq.metric import top1
from sq.types.images import Batch

REFERENCE = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 4.0], [5.0, 0.0, 1.0]])
OUTPUTS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0], [1.0, 0.0, 4.0], [0.0, 0.0, 1.0]])
LABELS = torch.tensor([0, 1, 2, 2])


def measured(outputs, labels, size=3):
    parts = zip(outputs.split(size), labels.split(size), strict=True)
    seen = [(o, Batch(torch.zeros(len(o), 1), y, [""] * len(o))) for o, y in parts]
    return top1.measure(None, iter(seen))


def test_top1_by_hand():
    # right in full precision: 0, 1, 2; quantized: 0, 2, 3
    full, found = measured(REFERENCE, LABELS), measured(OUTPUTS, LABELS)
    assert full.figures == found.figures == {"top1": 75}, "of three classes five are no test"
    assert found.against(full)["drop"] == 0
    labels = torch.tensor([0, 1, 2, 0])
    full, found = measured(REFERENCE, labels), measured(OUTPUTS, labels)
    assert (full.figures["top1"], found.figures["top1"]) == (100, 50)
    compared = found.against(full)
    assert compared["drop"] == 50
    assert compared["drop_low"] < 50 < compared["drop_high"]
    assert compared["drop_p"] == 0.5  # two of two changes for the worse
    assert found.answers() == "a0"  # 1010, and four that pad
    assert compared.items() >= agreement.measure(OUTPUTS, REFERENCE).items()


def test_top5_counts_labels_among_five():
    logits = torch.arange(8.0).repeat(4, 1)
    assert measured(logits, torch.tensor([7, 3, 2, 0])).figures == {"top1": 25, "top5": 50}


def test_metric_for_labels_refuses_what_has_none():
    with pytest.raises(SqError, match=r"metric=top1 needs one label an image.*metric=coco_map"):
        top1.measure(None, iter([(REFERENCE, Batch(torch.zeros(4, 1), [None] * 4, ["a"] * 4))]))
    with pytest.raises(SqError, match=r"labels go up to 3, the network tells 3 classes apart"):
        measured(REFERENCE, torch.tensor([0, 1, 2, 3]))


def test_agreement_by_hand():
    found = agreement.measure(OUTPUTS, REFERENCE)
    signal, noise = 4 + 10 + 17 + 26, 1 + 8 + 0 + 25
    assert found["logit_snr_db"] == pytest.approx(10 * math.log10(signal / noise))
    assert found["same_top1"] == 50

    def softmax(row):
        total = sum(math.exp(v) for v in row)
        return [math.exp(v) / total for v in row]

    pairs = [
        (softmax(r), softmax(o)) for r, o in zip(REFERENCE.tolist(), OUTPUTS.tolist(), strict=True)
    ]
    kl = sum(p * math.log(p / q) for r, o in pairs for p, q in zip(r, o, strict=True)) / 4
    assert found["kl"] == pytest.approx(kl)
    assert set(found) == {"logit_snr_db", "kl", "same_top1"}


def test_identical_logits():
    found = agreement.measure(REFERENCE, REFERENCE.clone())
    assert found == {"logit_snr_db": 300, "kl": 0, "same_top1": 100}


@pytest.mark.parametrize("noise", [1e-3, 1e-1])
def test_snr_falls_by_20_db_a_decade(noise):
    direction = torch.randn(64, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reference = 5 * direction.flip(0)
    found, less = (
        agreement.measure(reference + e * direction, reference) for e in (noise, noise / 10)
    )
    assert less["logit_snr_db"] - found["logit_snr_db"] == pytest.approx(20)
    assert 0 < less["kl"] < found["kl"]
