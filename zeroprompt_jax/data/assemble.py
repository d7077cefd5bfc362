"""Assembly: cached token ids put into the arrays that models read, one example a row or several."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zeroprompt_jax.data.cards import LEAST_INPUT
from zeroprompt_jax.data.shards import ragged_positions
from zeroprompt_jax.data.store import CUTS, OWN, Store
from zeroprompt_jax.data.vocabulary import EOS_ID, Vocabulary
from zeroprompt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Features:
    """Token lengths of a batch, EOS included.

    Attributes:
      inputs: T, of the encoder's input: instruction, input, EOS. Only the input is ever cut to fit, and of it only what
        its task's template has from the example: neither the template's own text nor the listed options.
      targets: S, of the decoder. A longer target is cut and then has no EOS, so that nothing teaches to stop early.
      instructions: U, of `instruction_tokens`, the instruction and EOS alone; 0 leaves them out.
      instruction_limit: cut instructions to so many tokens; with None one that does not fit is an error.
      instruct_inputs: whether the encoder's input begins with the instruction.
    """

    inputs: int
    targets: int
    instructions: int = 0
    instruction_limit: int | None = None
    instruct_inputs: bool = True

    def __post_init__(self):
        for name in ("inputs", "targets"):
            if getattr(self, name) < 2:
                raise UserError(
                    f"Feature length {name}={getattr(self, name)} is too short; it must hold a token and EOS."
                )
        if self.instruction_limit is not None and self.instruction_limit < 1:
            raise UserError(f"Feature length instruction_limit={self.instruction_limit} must be at least 1, or None.")


class Packing(NamedTuple):
    """Where E examples go in packed rows. rows: B. row_E: whose row; segment_E: from 1 in each row; encoder_E, target_E:
    first column of its encoder input and of its target."""

    rows: int
    row_E: np.ndarray
    segment_E: np.ndarray
    encoder_E: np.ndarray
    target_E: np.ndarray


class _Wordings:
    """Instructions of several tasks as one ragged table."""

    def __init__(self, wordings: Sequence[Sequence[np.ndarray]], limit: int | None):
        self.counts_N = np.array([len(w) for w in wordings], np.int64)
        self._first_N = np.cumsum(self.counts_N) - self.counts_N
        rows = [row[:limit] for w in wordings for row in w]
        self._lengths = np.array([len(r) for r in rows], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._flat = np.concatenate([*rows, np.zeros(0, np.int32)]).astype(np.int32)

    def take(self, slots_B: np.ndarray, wording_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(flat ids, lengths [B]) of the given wordings of the given places in the table."""
        row_B = self._first_N[slots_B] + wording_B
        lengths_B = self._lengths[row_B]
        return self._flat[ragged_positions(self._starts[row_B], lengths_B)], lengths_B

    def lengths(self, slots_B: np.ndarray, wording_B: np.ndarray) -> np.ndarray:
        """Lengths [B] of the given wordings."""
        return self._lengths[self._first_N[slots_B] + wording_B]

    def longest(self) -> np.ndarray:
        """Length [N] of each place's longest wording."""
        longest_N = np.zeros(len(self.counts_N), np.int64)
        np.maximum.at(longest_N, np.repeat(np.arange(len(self.counts_N)), self.counts_N), self._lengths)
        return longest_N


class Assembler:
    """Puts instruction, input and target of examples into arrays."""

    def __init__(
        self,
        store: Store,
        tasks: Sequence[str],
        split: str,
        features: Features,
        wordings: Sequence[Sequence[np.ndarray]],
    ):
        self.features, self.store, self.split = features, store, split
        self.ids_N = np.array([store.task_id(t) for t in tasks], np.int64)
        self.separator = store.separator
        self.wordings = _Wordings(wordings, features.instruction_limit)
        self._own_N = np.array([store.brings_own(t) for t in tasks], bool)
        self.brings_own = tuple(t for t, own in zip(tasks, self._own_N) if own)
        self._cuts_N = np.array([store.has_cuts(t) for t in tasks], bool)
        self._check(tasks)

    def _check(self, tasks: Sequence[str]) -> None:
        f = self.features
        cut = " Give a larger length" + ("." if f.instruction_limit else ", or an instruction_limit to cut instructions.")
        longest_N = self.wordings.longest()
        for i in np.flatnonzero(self._own_N):
            own = self.store.lengths(tasks[i], self.split, OWN).max(initial=0)
            longest_N[i] = own if f.instruction_limit is None else min(own, f.instruction_limit)
        room_N = f.inputs - 1 - len(self.separator) - longest_N
        for i in np.flatnonzero(room_N < LEAST_INPUT) if f.instruct_inputs else ():
            # Short inputs need less room than we ask for in general.
            if room_N[i] < min(LEAST_INPUT, self.store.lengths(tasks[i], self.split, "inputs").max(initial=0)):
                raise UserError(
                    f"Feature length inputs={f.inputs} is too short for task '{tasks[i]}': its longest instruction has "
                    f"{longest_N[i]} tokens, which leaves {max(room_N[i], 0)} for the input.{cut}"
                )
        for i in np.flatnonzero(self._cuts_N):
            whole_E = self.store.lengths(tasks[i], self.split, "inputs")
            kept_E = self._kept(np.full(len(whole_E), self.ids_N[i]), np.arange(len(whole_E)))
            room = room_N[i] if f.instruct_inputs else f.inputs - 1
            if (short_E := np.minimum(kept_E + LEAST_INPUT, whole_E) > room).any():
                raise UserError(
                    f"Feature length inputs={f.inputs} is too short for task '{tasks[i]}': what must stay of an input, its "
                    f"options and the template's text, has {kept_E[short_E].max()} tokens, and instructions leave "
                    f"{max(room, 0)}.{cut}"
                )
        if f.instructions and not f.instruction_limit:
            for i in np.flatnonzero(longest_N + 1 > f.instructions):
                raise UserError(
                    f"Feature length instructions={f.instructions} is too short for task '{tasks[i]}': its longest "
                    f"instruction has "
                    f"{longest_N[i]} tokens and EOS.{cut}"
                )

    def lengths(
        self, slots_E: np.ndarray, example_E: np.ndarray, wording_E: np.ndarray, limit: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens ([E], [E] int64) of each example's encoder input and target, EOS included, as `batch` writes them."""
        ids_E, f = self.ids_N[slots_E], self.features
        instruction_E = self.wordings.lengths(slots_E, wording_E)
        if self.brings_own:
            own_E = self.store.gather_lengths(ids_E, self.split, example_E, OWN)
            instruction_E += own_E if f.instruction_limit is None else np.minimum(own_E, f.instruction_limit)
        _, start_E = self._starts(instruction_E)
        inputs_E = self.store.gather_lengths(ids_E, self.split, example_E, "inputs")
        inputs_E = np.minimum(inputs_E, self._room(start_E, limit, ids_E, example_E))
        separated_E = (start_E > 0) * len(self.separator)
        targets_E = self.store.gather_lengths(ids_E, self.split, example_E, "targets")
        encoder_E = np.where(inputs_E > 0, start_E + inputs_E, start_E - separated_E) + 1
        return encoder_E, np.minimum(targets_E + 1, f.targets)

    def _starts(self, instruction_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Length [E] of what of the instruction goes into the encoder, and where [E] the input begins after it."""
        if not self.features.instruct_inputs:
            instruction_E = np.zeros_like(instruction_E)
        return instruction_E, instruction_E + (instruction_E > 0) * len(self.separator)

    def _instructions(
        self, slots_E: np.ndarray, example_E: np.ndarray, wording_E: np.ndarray, donors_E: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(flat ids, lengths [E]) of the instructions: donors' wordings, or what an example brings itself."""
        flat, lengths_E = self.wordings.take(slots_E if donors_E is None else donors_E, wording_E)
        if not self.brings_own:
            return flat, lengths_E
        ids_E = self.ids_N[slots_E]
        if donors_E is not None:  # what another task's examples bring would not be for this one: the next example's
            sizes_N = np.array([self.store.size(self.store.tasks[i], self.split) for i in self.ids_N], np.int64)
            example_E = (example_E + 1) % sizes_N[slots_E]
        own, own_E = self.store.gather(ids_E, self.split, example_E, OWN, self.features.instruction_limit)
        kept_E = np.where(self._own_N[slots_E], 0, lengths_E)
        shared = flat[ragged_positions(np.cumsum(lengths_E) - lengths_E, kept_E)]
        made_E = kept_E + own_E  # one of the two is zero
        made, starts_E = np.zeros(made_E.sum(), np.int32), np.cumsum(made_E) - made_E
        _fill(made, starts_E, shared, kept_E)
        _fill(made, starts_E, own, own_E)
        return made, made_E

    def _room(self, start_E: np.ndarray, limit: int | None, ids_E: np.ndarray, example_E: np.ndarray) -> np.ndarray:
        """Most tokens [E] of the input that are kept."""
        room_E = self.features.inputs - 1 - start_E
        if limit is None:
            return room_E
        return np.minimum(room_E, np.maximum(limit - 1 - start_E, LEAST_INPUT + self._kept(ids_E, example_E)))

    def _kept(self, ids_E: np.ndarray, example_E: np.ndarray) -> np.ndarray:
        """Tokens [E] of the input that must not be cut."""
        if not self._cuts_N.any() or not len(ids_E):
            return np.zeros(len(ids_E), np.int64)
        cuts, counts_E = self.store.gather(ids_E, self.split, example_E, CUTS)
        owner = np.repeat(np.arange(len(ids_E)), counts_E // 2)
        free_E = np.bincount(owner, cuts[1::2] - cuts[::2], len(ids_E)).astype(np.int64)
        whole_E = self.store.gather_lengths(ids_E, self.split, example_E, "inputs")
        return np.where(counts_E > 0, whole_E - free_E, 0)

    def _inputs(self, ids_E: np.ndarray, example_E: np.ndarray, room_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(flat ids, lengths [E]) of the inputs, each cut to `room_E`."""
        if not self._cuts_N.any():
            return self.store.gather(ids_E, self.split, example_E, "inputs", room_E)
        whole_E = self.store.gather_lengths(ids_E, self.split, example_E, "inputs")
        cuts, counts_E = self.store.gather(ids_E, self.split, example_E, CUTS)
        apart_E = (whole_E > room_E) & (counts_E > 0)
        flat, lengths_E = self.store.gather(ids_E, self.split, example_E, "inputs", np.where(apart_E, whole_E, room_E))
        kept, ends_E, cut_ends_E = np.ones(len(flat), bool), np.cumsum(lengths_E), np.cumsum(counts_E)
        for e in np.flatnonzero(apart_E):
            mine = kept[ends_E[e] - lengths_E[e] : ends_E[e]]
            _cut(mine, cuts[cut_ends_E[e] - counts_E[e] : cut_ends_E[e]].reshape(-1, 2), room_E[e])
        return flat[kept], np.where(apart_E, room_E, lengths_E)

    def batch(
        self,
        slots_E: np.ndarray,
        example_E: np.ndarray,
        wording_E: np.ndarray | None,
        donors_E: np.ndarray | None = None,
        *,
        width: int | None = None,
        group: int = 1,
        packing: Packing | None = None,
        limit: int | None = None,
    ) -> dict[str, np.ndarray]:
        """The batch of E examples.

        Args:
          slots_E: numbers of the tasks.
          example_E: numbers of the examples within their tasks.
          wording_E: numbers of the instructions, or None for none.
          donors_E: the tasks whose instructions are read instead; of an example that brings its own, the next one's.
          width: T, where it is not `features.inputs`; all examples must fit.
          group: rows that share an instruction, which `instruction_tokens` then has once, [E / group, U].
          packing: where in the rows each example goes; one example a row when None.
          limit: cut inputs so that an example has at most so many tokens (but keeps a few of its input).
        """
        f, ids_E, E = self.features, self.ids_N[slots_E], len(slots_E)
        T, S = width or f.inputs, f.targets
        B = E if packing is None else packing.rows
        extra = {}
        if wording_E is None:
            flat, lengths_E = np.zeros(0, np.int32), np.zeros(E, np.int64)
        else:
            flat, lengths_E = self._instructions(slots_E, example_E, wording_E, donors_E)
        if f.instructions and group > 1:
            first_U = np.cumsum(lengths_E)[::group] - lengths_E[::group]
            shared_U = lengths_E[::group]
            extra["instruction_tokens"] = _pad(flat[ragged_positions(first_U, shared_U)], shared_U, f.instructions)
        elif f.instructions:
            extra["instruction_tokens"] = _pad(flat, lengths_E, f.instructions)
        if not f.instruct_inputs:
            flat = flat[:0]
        lengths_E, start_E = self._starts(lengths_E)
        inputs, inputs_E = self._inputs(ids_E, example_E, self._room(start_E, limit, ids_E, example_E))
        targets, targets_E = self.store.gather(ids_E, self.split, example_E, "targets", S)
        if packing is None:
            at_E, to_E = np.arange(E) * T, np.arange(E) * S
        else:
            at_E, to_E = packing.row_E * T + packing.encoder_E, packing.row_E * S + packing.target_E
        encoder = np.zeros(B * T, np.int32)  # flat, so that a row is a place in it
        _fill(encoder, at_E, flat, lengths_E)
        _fill(encoder, at_E + start_E, inputs, inputs_E)
        apart = np.flatnonzero((start_E > lengths_E) & (inputs_E > 0))
        for k, token in enumerate(self.separator):
            encoder[at_E[apart] + lengths_E[apart] + k] = token
        last_E = np.where(inputs_E > 0, start_E + inputs_E, lengths_E)
        encoder[at_E + last_E] = EOS_ID
        target = np.zeros(B * S, np.int32)
        _fill(target, to_E, targets, targets_E)
        ends = np.flatnonzero(targets_E < S)
        target[to_E[ends] + targets_E[ends]] = EOS_ID
        used_E = np.minimum(targets_E + 1, S)
        shifted = np.zeros_like(target)
        shifted[1:] = target[:-1]
        shifted[to_E] = 0
        if packing is None:
            shifted_BS = shifted.reshape(B, S)
            weights_BS = (np.arange(S) < used_E[:, None]).astype(np.float32)
            extra["task_ids"] = ids_E.astype(np.int32)
        else:
            segments_BT, segments_BS = np.zeros((B, T), np.int32), np.zeros((B, S), np.int32)
            _fill(segments_BT.reshape(-1), at_E, np.repeat(packing.segment_E, last_E + 1), last_E + 1)
            _fill(segments_BS.reshape(-1), to_E, np.repeat(packing.segment_E, used_E), used_E)
            weights_BS = (segments_BS > 0).astype(np.float32)
            shifted_BS = shifted.reshape(B, S) * (segments_BS > 0)
            # Every target has a token and EOS, so no row holds more segments than this.
            tasks_BK = np.full((B, S // 2), -1, np.int32)
            tasks_BK[packing.row_E, packing.segment_E - 1] = ids_E
            extra |= {
                "encoder_segment_ids": segments_BT,
                "decoder_segment_ids": segments_BS,
                "task_ids": tasks_BK,
            }
        return {
            "encoder_input_tokens": encoder.reshape(B, T),
            "decoder_target_tokens": target.reshape(B, S),
            "decoder_input_tokens": shifted_BS,
            "decoder_loss_weights": weights_BS,
            **extra,
        }


def _cut(kept: np.ndarray, spans: np.ndarray, room: int) -> None:
    """Marks so many tokens as not kept that `room` are left: the ends of spans, the longest first."""
    for start, end in spans[np.argsort(spans[:, 0] - spans[:, 1], kind="stable")]:
        over = min(int(kept.sum()) - room, end - start)
        kept[end - max(over, 0) : end] = False
    kept[np.flatnonzero(kept)[room:]] = False  # the control's foreign instruction may be longer than any of its own


def _fill(out: np.ndarray, at_E: np.ndarray, flat: np.ndarray, lengths_E: np.ndarray) -> None:
    """Writes ragged rows into the flat array `out`, the e-th from place `at_E[e]`."""
    out[ragged_positions(at_E, lengths_E)] = flat


def encode_texts(texts: Sequence[str], vocabulary: Vocabulary, length: int) -> np.ndarray:
    """Token ids [B, length] int32 of texts, each cut to leave room for its EOS, padded with 0."""
    return _pad(*vocabulary.encode_ragged(list(texts)), length)


def _pad(flat: np.ndarray, lengths_B: np.ndarray, length: int) -> np.ndarray:
    """Ragged rows, each cut to leave room for its EOS, as [B, length]."""
    kept_B = np.minimum(lengths_B, length - 1)
    out_BT = np.zeros((len(lengths_B), length), np.int32)
    starts_B = np.cumsum(lengths_B) - lengths_B
    rows_B = np.arange(len(lengths_B)) * length
    _fill(out_BT.reshape(-1), rows_B, flat[ragged_positions(starts_B, kept_B)], kept_B)
    out_BT[np.arange(len(lengths_B)), kept_B] = EOS_ID
    return out_BT
