"""The endless order of texts that a seed gives, and how many steps a budget of tokens is."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32, Int64

from fractal_core.errors import Refused


@runtime_checkable
class Texts(Protocol):
    """Tokenised conversations."""

    @property
    def rows(self) -> int:
        """How many there are."""
        ...

    def row(self, i: int) -> tuple[Int32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Token ids of one, and which of them are learned."""
        ...


class Stream:
    """Texts in an order by chance, drawn anew for every pass through all of them.

    Texts of which nothing is learned within the length are passed over.

    Args:
        texts: What there is.
        length: Tokens of a text that are used at most.
        seed: Decides the order.

    Raises:
        Refused: Nothing is learned within so many tokens.
    """

    def __init__(self, texts: Texts, length: int, seed: int):
        self.texts, self.length, self.seed = texts, length, seed
        counts = np.array([texts.row(at)[1][1 : length + 1].sum() for at in range(texts.rows)])
        self._usable = np.flatnonzero(counts)
        self._counts = counts[self._usable].astype(np.int64)
        self._orders: list[np.ndarray] = []
        if not len(self._usable):
            raise Refused(
                f"in no text is anything learned within {length} tokens; raise sequence_length"
            )

    def row(self, place: int) -> tuple[list[int], list[bool]]:
        """The text at a place of the order, with one token more than are used, to be predicted."""
        turn, at = divmod(place, len(self._usable))
        ids, learned = self.texts.row(int(self._usable[self._order(turn)[at]]))
        return ids[: self.length + 1].tolist(), learned[: self.length + 1].tolist()

    def learned(self, first: int, last: int) -> Int64[np.ndarray, " places"]:
        """Learned tokens of the texts at places `first` to `last`, that one not included."""
        turns = range(first // len(self._usable), -(-last // len(self._usable)))
        counts = np.concatenate([self._counts[self._order(turn)] for turn in turns])
        start = turns[0] * len(self._usable)
        return counts[first - start : last - start]

    def steps(self, tokens: int, per_step: int, most: int) -> int:
        """The fewest steps of `per_step` texts that see so many learned tokens.

        Raises:
            Refused: They are more than `most`.
        """
        for planned in range(1, most + 1):
            tokens -= int(self.learned((planned - 1) * per_step, planned * per_step).sum())
            if tokens <= 0:
                return planned
        raise Refused(f"that budget of tokens takes more than {most} steps; lower num_tokens")

    def _order(self, turn: int) -> np.ndarray:
        while len(self._orders) <= turn:
            draw = np.random.default_rng([self.seed, len(self._orders)])
            self._orders.append(draw.permutation(len(self._usable)))
        return self._orders[turn]
