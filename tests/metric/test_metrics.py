import math

import pytest
import torch

from sq.metric import agreement, top1

REFERENCE = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 4.0], [5.0, 0.0, 1.0]])
OUTPUTS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0], [1.0, 0.0, 4.0], [0.0, 0.0, 1.0]])
LABELS = torch.tensor([0, 1, 2, 2])


def test_top1_by_hand():
    # right in full precision: 0, 1, 2; quantized: 0, 2, 3
    assert top1.measure(OUTPUTS, REFERENCE, LABELS) == {"top1": 75, "top1_full": 75, "drop": 0}
    labels = torch.tensor([0, 1, 2, 0])
    assert top1.measure(OUTPUTS, REFERENCE, labels) == {"top1": 50, "top1_full": 100, "drop": 50}


def test_agreement_by_hand():
    found = agreement.measure(OUTPUTS, REFERENCE, LABELS)
    signal, noise = 4 + 10 + 17 + 26, 1 + 8 + 0 + 25
    assert found["logit_snr_db"] == pytest.approx(10 * math.log10(signal / noise))
    assert found["same_top1"] == 50

    def softmax(row):
        total = sum(math.exp(v) for v in row)
        return [math.exp(v) / total for v in row]

    pairs = [(softmax(r), softmax(o)) for r, o in zip(REFERENCE.tolist(), OUTPUTS.tolist(), strict=True)]
    kl = sum(p * math.log(p / q) for r, o in pairs for p, q in zip(r, o, strict=True)) / 4
    assert found["kl"] == pytest.approx(kl)
    assert set(found) == {"logit_snr_db", "kl", "same_top1"}


def test_identical_logits():
    found = agreement.measure(REFERENCE, REFERENCE.clone(), LABELS)
    assert found == {"logit_snr_db": 300, "kl": 0, "same_top1": 100}


def test_labels_do_not_change_agreement():
    assert agreement.measure(OUTPUTS, REFERENCE, LABELS) == agreement.measure(OUTPUTS, REFERENCE, 1 - LABELS)


@pytest.mark.parametrize("noise", [1e-3, 1e-1])
def test_snr_falls_by_20_db_a_decade(noise):
    direction = torch.randn(64, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reference = 5 * direction.flip(0)
    found, less = (agreement.measure(reference + e * direction, reference, None) for e in (noise, noise / 10))
    assert less["logit_snr_db"] - found["logit_snr_db"] == pytest.approx(20)
    assert 0 < less["kl"] < found["kl"]
