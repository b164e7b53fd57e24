# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Counter-based random numbers: a sample's draws depend on its address alone.

Masks, augmentation and latent noise must not change with the number of processes, workers or accumulation
steps, nor after a resume. So they do not come from a stateful generator but from a hash of the address
``(seed, step, slot, stream)``, where ``slot`` is the sample's place in the global batch of an optimizer step.
The hash is the SplitMix64 finaliser (Steele, Lea & Flood, OOPSLA 2014), in wrapping int64 arithmetic, hence
bit-equal on every device.
"""

import math

import numpy as np
import torch
from torch import Tensor


_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 that has the same 64 bits as `value`."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _mix_int(value: int) -> int:
    value &= _MASK64
    value = ((value ^ (value >> 30)) * _MIX1) & _MASK64
    value = ((value ^ (value >> 27)) * _MIX2) & _MASK64
    return value ^ (value >> 31)


# On a CPU numpy does it: it shifts unsigned numbers in one pass, where torch takes two, and small calls cost it less.
def _mix_array_(value: np.ndarray, whole: bool = True) -> None:
    """The hash of uint64 numbers, in place; unless `whole`, without its last step, which leaves the upper 31 bits."""
    scratch = np.empty_like(value)
    value ^= np.right_shift(value, np.uint64(30), out=scratch)
    value *= np.uint64(_MIX1)
    value ^= np.right_shift(value, np.uint64(27), out=scratch)
    value *= np.uint64(_MIX2)
    if whole:
        value ^= np.right_shift(value, np.uint64(31), out=scratch)


def _mix_tensor_(value: Tensor, whole: bool = True) -> Tensor:
    """The same of int64 numbers."""
    value.bitwise_xor_(_shift_right(value, 30)).mul_(_signed(_MIX1))
    value.bitwise_xor_(_shift_right(value, 27)).mul_(_signed(_MIX2))
    if whole:
        value.bitwise_xor_(_shift_right(value, 31))
    return value


def _shift_right(value: Tensor, bits: int) -> Tensor:
    # `>>` on int64 keeps the sign; a hash wants zeros shifted in.
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


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
    base = _mix_int(_mix_int(_mix_int(seed + _GOLDEN) + step + _GOLDEN) + stream + _GOLDEN)
    if slots.device.type == "cpu":
        # A last axis of one keeps a single slot an array: numpy's scalars warn where they wrap around.
        array = slots.numpy()[..., None].view(np.uint64) * np.uint64(_GOLDEN)
        array += np.uint64(base)
        _mix_array_(array)
        _mix_array_(array)
        return torch.from_numpy(array.view(np.int64)[..., 0])
    keys = (slots * _signed(_GOLDEN)).add_(_signed(base))
    return _mix_tensor_(_mix_tensor_(keys))


def counters(count: int, device: torch.device | str = "cpu") -> Tensor:
    """What [`uniform`] adds to a key, one number each for its draws: int64 (count,)."""
    return torch.arange(1, count + 1, device=device, dtype=torch.int64) * _signed(_GOLDEN)


def uniform_integers(keys: Tensor, counters: Tensor) -> Tensor:
    """[`uniform`] times 2**24, as int64 of shape `keys.shape + counters.shape`, for `counters` (n,)."""
    # The hash's last step does not reach its upper 24 bits.
    if keys.device.type == "cpu":
        array = keys.numpy()[..., None].view(np.uint64) + counters.numpy().view(np.uint64)
        _mix_array_(array, whole=False)
        array >>= np.uint64(40)
        return torch.from_numpy(array.view(np.int64))
    bits = _mix_tensor_(keys.unsqueeze(-1) + counters, whole=False)
    return bits.bitwise_right_shift_(40).bitwise_and_((1 << 24) - 1)


def to_unit_interval(integers: Tensor) -> Tensor:
    """float32 in [0, 1) of [`uniform_integers`]."""
    return integers.to(torch.float32).mul_(2.0**-24)


def uniform(keys: Tensor, count: int) -> Tensor:
    """Uniform float32 numbers in [0, 1), of shape `keys.shape + (count,)`, 24 random bits each."""
    return to_unit_interval(uniform_integers(keys, counters(count, keys.device)))


def normal(keys: Tensor, count: int) -> Tensor:
    """Standard normal float32 numbers of shape `keys.shape + (count,)` (Box & Muller, 1958)."""
    half = (count + 1) // 2
    bits = keys.unsqueeze(-1) + counters(half, keys.device)
    if bits.device.type == "cpu":
        _mix_array_(bits.numpy().view(np.uint64))
    else:
        _mix_tensor_(bits)
    # One hash feeds a pair: its upper 24 bits give the radius, the next 24 the angle.
    radius = (((bits >> 40) & 0xFFFFFF).to(torch.float32) + 1.0) * 2.0**-24
    angle = ((bits >> 16) & 0xFFFFFF).to(torch.float32) * (2.0 * math.pi * 2.0**-24)
    radius = torch.sqrt(-2.0 * torch.log(radius))
    pairs = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return pairs[..., :count]
