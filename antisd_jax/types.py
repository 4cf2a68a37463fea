"""The arrays that travel between the stages of a step.

A worked example, P = 1 problem with G = 2 samples, prompt ids [5 6 7], R = 4 response tokens at most, 2 = end of text:

    sample 0 says 8 9 2:    tokens [8 9 2 0]  length 3  stopped True     (the 2 is part of the response and is learned)
    sample 1 says 8 8 9 9:  tokens [8 8 9 9]  length 4  stopped False    (cut off at R)

As rows of a batch (T = 8, right-padded) they become

    tokens [5 6 7 8 9 2 0 0]  prompt_length 3  response_length 3
    tokens [5 6 7 8 8 9 9 0]  prompt_length 3  response_length 4

The response's token j stands at index prompt_length + j and is predicted by the hidden state one before it. Under the
teacher's longer prompt the same token has the same j: positions are aligned by response index. Masks come from lengths,
never from a token's value: the padding id may well be the end-of-text id.
"""

from typing import Any

import numpy as np
from flax import struct


@struct.dataclass
class Rollouts:
    """What the sampler gives for P problems with G samples each."""

    tokens: Any  # [P G R] response ids, right-padded with 0
    lengths: Any  # [P G] response tokens, the stop token included
    logprobs: Any  # [P G R] the sampler's log-probs of them, at the sampling temperature
    stopped: Any  # [P G] True when a stop token ended it, False when R did


@struct.dataclass
class Rows:
    """Sequences to score: prompt and response in one right-padded row."""

    tokens: Any  # [B T]
    prompt_lengths: Any  # [B]
    response_lengths: Any  # [B]; 0 for a row that only fills up a micro-batch


def pack_rows(pairs, count: int, length: int) -> Rows:
    """(prompt ids, response ids) pairs → Rows [count length] on the host; rows beyond the pairs have response length 0."""
    tokens = np.zeros((count, length), np.int32)
    sizes = np.zeros((2, count), np.int32)
    sizes[0] = 1
    for i, (prompt, response) in enumerate(pairs):
        tokens[i, : len(prompt)] = prompt
        tokens[i, len(prompt) : len(prompt) + len(response)] = response
        sizes[:, i] = len(prompt), len(response)
    return Rows(tokens, sizes[0], sizes[1])


@struct.dataclass
class Scores:
    """Log-prob and entropy of the response tokens of Rows, float32, in nats."""

    logprobs: Any  # [… R]
    entropies: Any  # [… R]


@struct.dataclass
class Batch:
    """Everything the gradient of a micro-batch needs besides the weights. R' = min(R, T)."""

    rows: Rows
    sequence_advantages: Any  # [B] A_seq
    teacher_logprobs: Any  # [B R'] t
    term_weights: Any  # [B R'] or [B 1]: 1 where the per-token term acts, 0 where there is no usable privileged context
    loss_weights: Any  # [B] weight of each response token of the row in the loss: the global denominator lives here
    sampled_logprobs: Any = None  # [B R'] the sampler's, where the loss corrects for it
    old_logprobs: Any = None  # [B R'] s at the start of the step; None: this update's own forward pass is at the start


@struct.dataclass
class TrainState:
    """What an update changes."""

    weights: Any
    optimizer: Any
