"""Packing: which examples share a row."""

import numpy as np


def best_fit(encoder_E: np.ndarray, target_E: np.ndarray, inputs: int, targets: int) -> np.ndarray:
    """Best fit, the largest first: the row [E] int64 of each example, from 0 without gaps.

    An example goes where it leaves the encoder the least room, and among those rows the decoder the least. It is a loop
    over examples, because each choice depends on the one before; what could be slow, finding the row, looks up the
    lowest bit of an integer that has a bit for every amount of room some row has left.

    Args:
      encoder_E, target_E: tokens of each example, at least 1 and at most `inputs` and `targets`.
      inputs, targets: tokens that a row takes.
    """
    order = np.argsort(-np.maximum(encoder_E * targets, target_E * inputs), kind="stable")
    least, least_target = int(encoder_E.min()), int(target_E.min())
    rows: list[dict[int, list[int]]] = [{} for _ in range(inputs + 1)]  # encoder room -> decoder room -> rows
    targets_of = [0] * (inputs + 1)  # encoder room -> a bit for each decoder room
    rooms = opened = 0  # rooms: a bit for each encoder room
    chosen = []
    for a, b in zip(encoder_E[order].tolist(), target_E[order].tolist(), strict=True):
        left, room = rooms >> a, a
        while left:
            skip = (left & -left).bit_length() - 1
            room += skip
            fits = targets_of[room] >> b
            if fits:
                break
            left >>= skip + 1
            room += 1
        if left:
            target_room = b + (fits & -fits).bit_length() - 1
            stack = rows[room][target_room]
            row = stack.pop()
            if not stack:
                targets_of[room] ^= 1 << target_room
                if not targets_of[room]:
                    rooms ^= 1 << room
        else:
            room, target_room, row = inputs, targets, opened
            opened += 1
        chosen.append(row)
        room, target_room = room - a, target_room - b
        if room >= least and target_room >= least_target:  # else nothing fits any more
            rows[room].setdefault(target_room, []).append(row)
            targets_of[room] |= 1 << target_room
            rooms |= 1 << room
    out_E = np.empty(len(order), np.int64)
    out_E[order] = chosen
    return out_E


def spread(row_E: np.ndarray, rows: int) -> np.ndarray:
    """Moves one example each into the rows that are still empty, from rows that hold several, so that no row of 0 …
    `rows` - 1 is. There must be as many examples as rows."""
    empty = np.arange(row_E.max() + 1, rows)
    order_E = np.argsort(row_E, kind="stable")
    more = order_E[1:][np.diff(row_E[order_E]) == 0]  # all but each row's first
    out_E = row_E.copy()
    out_E[more[np.arange(len(empty)) * len(more) // max(len(empty), 1)]] = empty
    return out_E
