"""The gate's network as it is trained; `gate.gate` serves the same arithmetic in numpy, and a test keeps them equal.

    hashed n-grams --(embedding bag)--+
                                      +-- hidden (GELU) --+-- task head: softmax over kinds of prompts, pi
    prompt shape ---------------------+                   +-- residual head: r, one number per expert

    log-odds of expert n answering well = logit( sum_k pi_k * profile_kn ) + residual_scale * r_n

The profile is each expert's mean score on each kind of prompt, shrunk to its overall mean. The kind of a prompt
explains most of what can be known about who answers it well; the residual is what goes beyond, and validation decides
how much of it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_MARGIN = 1e-4


@dataclass(frozen=True)
class Batch:
    """The features of several prompts (rows), as the network reads them."""

    buckets: Tensor
    """(nnz,) n-gram buckets of all rows, one row after the other."""
    values: Tensor
    """(nnz,) weights of these buckets."""
    offsets: Tensor
    """(rows,) where each row starts in `buckets`."""
    shape: Tensor
    """(rows, shape_size) standardised shape features."""


class GateNetwork(nn.Module):
    """The trainable network: an embedding of n-grams, one hidden layer, a task head and a residual head.

    `forward` returns the task logits (rows, kinds) and the residual (rows, experts).
    """

    def __init__(
        self,
        *,
        buckets: int,
        shape_size: int,
        kinds: int,
        experts: int,
        width: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(buckets, width, mode="sum")
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.hidden = nn.Linear(width + shape_size, hidden)
        self.task_head = nn.Linear(hidden, kinds)
        self.residual_head = nn.Linear(hidden, experts)
        nn.init.zeros_(self.residual_head.weight)
        nn.init.zeros_(self.residual_head.bias)
        self.dropout = dropout

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        bag = self.embedding(batch.buckets, batch.offsets, per_sample_weights=batch.values)
        joined = functional.dropout(torch.cat([bag, batch.shape], dim=1), self.dropout, self.training)
        hidden = functional.gelu(self.hidden(joined), approximate="tanh")
        hidden = functional.dropout(hidden, self.dropout, self.training)
        return self.task_head(hidden), self.residual_head(hidden)


def expert_log_odds(kind_logits: Tensor, residual: Tensor, profile: Tensor) -> Tensor:
    """(rows, experts) the raw log-odds that each expert answers well.

    kind_logits: (rows, kinds of the pool). residual: (rows, experts). profile: (kinds of the pool, experts).
    """
    mean = (functional.softmax(kind_logits, dim=1) @ profile).clamp(_MARGIN, 1 - _MARGIN)
    return torch.logit(mean) + residual


def entropy_regularised_loss(logits: Tensor, losses: Tensor, known: Tensor, tau: float) -> Tensor:
    """(rows,) the entropy-regularised expected loss with weights softmax(logits) over the experts run on each row.

    logits, losses: (rows, experts). known: (rows, experts) True where an expert was run; a row without any gives 0.
    Source: design.md, section 2.
    """
    usable = known.any(dim=1)
    masked = logits.masked_fill(~known, float("-inf"))
    masked = torch.where(usable[:, None], masked, torch.zeros_like(masked))
    log_weights = functional.log_softmax(masked, dim=1)
    weights = log_weights.exp()
    terms = torch.where(known, weights * (losses + tau * log_weights.clamp(min=-1e4)), torch.zeros_like(weights))
    return terms.sum(dim=1)
