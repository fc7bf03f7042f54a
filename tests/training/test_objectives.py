from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from rectified.training import classification, logits_of


def test_logits_are_found_in_the_outputs_of_other_libraries():
    scores = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert logits_of(scores) is scores
    assert logits_of(SimpleNamespace(logits=scores)) is scores
    assert logits_of((SimpleNamespace(logits=scores), None)) is scores

    class Wrapped(nn.Module):
        def forward(self, x):
            return SimpleNamespace(logits=scores)

    labels = torch.tensor([0, 1])
    assert classification(Wrapped(), (scores, labels)) == F.cross_entropy(scores, labels)
