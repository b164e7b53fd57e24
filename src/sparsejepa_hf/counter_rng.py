# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Counter-based random numbers: a sample's draws depend on its address alone.

Masks, augmentation and latent noise must not change with the number of processes, workers or accumulation
steps, nor after a resume. So they do not come from a stateful generator but from a hash of the address
``(seed, step, slot, stream)``, where ``slot`` is the sample's place in the global batch of an optimizer step.
The hash is the SplitMix64 finaliser (Steele, Lea & Flood, OOPSLA 2014), in wrapping int64 arithmetic, hence
bit-equal on every device.
"""

import math

import torch
from torch import Tensor


_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 that has the lowest 64 bits of `value`."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    # `>>` on int64 copies the sign into the upper bits, but the hash needs zeros there.
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix_(value: Tensor) -> Tensor:
    """The hash of int64 numbers, in place."""
    value.bitwise_xor_(_shift_right(value, 30)).mul_(_signed(_MIX1))
    value.bitwise_xor_(_shift_right(value, 27)).mul_(_signed(_MIX2))
    return value.bitwise_xor_(_shift_right(value, 31))


def _mix_int(value: int) -> int:
    """[`_mix_`] of one number, which stays on the host: a tensor of it would have to be brought to the device."""
    value &= _MASK64
    value = ((value ^ (value >> 30)) * _MIX1) & _MASK64
    value = ((value ^ (value >> 27)) * _MIX2) & _MASK64
    return value ^ (value >> 31)


def stream_keys(seed: int, step: int, slots: Tensor, stream: int) -> Tensor:
    """Hashes addresses into keys for [`uniform`] and [`normal`].

    Args:
        seed: seed of the run.
        step: optimizer step.
        slots: int64 of any shape, places in the step's global batch.
        stream: which use the numbers are for; two uses with different streams are independent.

    Returns:
        int64 keys of the shape of `slots`, on its device. No device synchronisation.
    """
    base = 0
    for part in (seed, step, stream):
        base = _mix_int(base + part + _GOLDEN)
    return _mix_(_mix_((slots * _signed(_GOLDEN)).add_(_signed(base))))


def _hashes(keys: Tensor, count: int) -> Tensor:
    """The first `count` outputs of SplitMix64 from each key: int64 `keys.shape + (count,)`."""
    counters = torch.arange(1, count + 1, device=keys.device).mul_(_signed(_GOLDEN))
    return _mix_(keys.unsqueeze(-1) + counters)


def uniform(keys: Tensor, count: int) -> Tensor:
    """Uniform float32 numbers in [0, 1), of shape `keys.shape + (count,)`, 24 random bits each."""
    return _shift_right(_hashes(keys, count), 40).to(torch.float32).mul_(2.0**-24)


def normal(keys: Tensor, count: int) -> Tensor:
    """Standard normal float32 numbers of shape `keys.shape + (count,)` (Box & Muller, 1958)."""
    bits = _hashes(keys, (count + 1) // 2)
    # One hash feeds a pair: its upper 24 bits give the radius, the next 24 the angle.
    radius = (((bits >> 40) & 0xFFFFFF).to(torch.float32) + 1.0) * 2.0**-24
    angle = ((bits >> 16) & 0xFFFFFF).to(torch.float32) * (2.0 * math.pi * 2.0**-24)
    radius = torch.sqrt(-2.0 * torch.log(radius))
    pairs = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return pairs[..., :count]
