"""Batches of tokens: pretraining texts in one endless stream, conversations one per row.

A loader yields a state with every batch. A loader that is given the state goes on with the batch
after it, token for token: the state says where in the texts that batch begins.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nanochat.common import Refused, get_dist_info
from nanochat.dataset import open_shard, read_group, split_files
from nanochat.tokenizer import MAX_TOKENS, RustBPETokenizer, get_tokenizer

IGNORED = -1
"""The target of a position that is not learned from."""

Row = tuple[list[int], list[int]]
"""A rendered conversation: ids and mask."""


class Conversations(Protocol):
    """What has rows, such as a list or a task."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Place:
    """A token in the texts: epoch, shard, row group, text in the group, token in the text."""

    pq_idx: int
    rg_idx: int
    document: int = 0
    token: int = 0
    epoch: int = 0


def tokenizing_distributed_data_loader_with_state(
    B: int,
    T: int,
    split: str,
    tokenizer_threads: int = 4,
    tokenizer_batch_size: int = 128,
    device: str | torch.device = "cuda",
    resume_state_dict: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Inputs and targets (B, T) of a split, without end, each with the state that follows it.

    Every text is preceded by `<|bos|>` and all are laid end to end; a batch takes B T + 1 tokens,
    so rows begin anywhere in a text, and the last target of a batch is the input of none. With
    several processes each reads every so many row groups.

    Args:
        B: Rows.
        T: Tokens of a row.
        split: train or val.
        tokenizer_threads: How many threads encode.
        tokenizer_batch_size: How many texts are encoded at a time.
        device: Where the batches go.
        resume_state_dict: A state to go on from. Of one that another process or the reference
            wrote, only the row group counts: what was left of it is skipped, as the reference does.

    Raises:
        Refused: There are too few shards, one is damaged, or the state does not belong to them.
    """
    files = split_files(split)
    _, rank, _, world = get_dist_info()
    tokenizer = get_tokenizer()
    bos = tokenizer.get_bos_token_id()
    held: deque[tuple[Place, list[int]]] = deque()
    count, need = 0, B * T + 1
    for start, texts in _groups(
        files, _start(resume_state_dict, len(files), rank, world), rank, world
    ):
        for first in range(start.document, len(texts), tokenizer_batch_size):
            batch = texts[first : first + tokenizer_batch_size]
            encoded = tokenizer.encode(batch, prepend=bos, num_threads=tokenizer_threads)
            for document, ids in enumerate(encoded, first):
                skip = start.token if document == start.document else 0
                held.append((dataclasses.replace(start, document=document, token=skip), ids[skip:]))
                count += len(ids) - skip
            while count >= need:
                tokens, following = _take(held, need)
                count -= need
                window = torch.tensor(tokens, dtype=torch.long).to(device)
                state = {
                    "pq_idx": start.pq_idx,
                    "rg_idx": start.rg_idx,
                    "next": dataclasses.asdict(following) | {"rank": rank, "world_size": world},
                }
                yield window[:-1].view(B, T), window[1:].view(B, T), state


def tokenizing_distributed_data_loader(
    *args: Any, **kwargs: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same without the states."""
    for inputs, targets, _ in tokenizing_distributed_data_loader_with_state(*args, **kwargs):
        yield inputs, targets


def sft_data_loader(
    dataset: Conversations,
    tokenizer: RustBPETokenizer,
    batch_size: int,
    *,
    max_tokens: int = MAX_TOKENS,
    device: str | torch.device = "cpu",
    resume_state_dict: Mapping[str, int] | None = None,
) -> Iterator[tuple[Tensor, Tensor, dict[str, int]]]:
    """Inputs and targets of conversations, one a row in the order of `dataset`, over and over.

    Rows are as wide as the longest of their batch: `collate` says how they are filled. What is
    longer than `max_tokens` is cut off, and a conversation with nothing to learn in what is left
    is passed over: a batch without supervised tokens has no mean loss.

    Raises:
        Refused: A conversation is malformed, or in none of them is anything to learn.
    """
    _, rank, _, world = get_dist_info()
    pad = tokenizer.encode_special("<|assistant_end|>")
    index = resume_state_dict["row"] if resume_state_dict else rank
    rows: list[Row] = []
    passed_over = 0
    while True:
        if index >= len(dataset):
            index = rank
        if passed_over >= len(dataset):
            raise Refused(
                f"no conversation has anything to learn within {max_tokens} tokens; "
                "give the model a longer context or choose other data"
            )
        try:
            row = tokenizer.render_conversation(dataset[index], max_tokens=max_tokens)
        except Refused as error:
            raise Refused(f"conversation {index}: {error}") from None
        index += world
        if not any(row[1][1:]):
            passed_over += world
            continue
        passed_over = 0
        rows.append(row)
        if len(rows) == batch_size:
            yield *collate(rows, pad, device), {"row": index}
            rows = []


def mid_data_loader(
    dataset: Conversations,
    tokenizer: RustBPETokenizer,
    B: int,
    T: int,
    *,
    device: str | torch.device = "cpu",
    resume_state_dict: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Inputs and targets (B, T) of whole conversations laid end to end, without end.

    Everything is learned from, what the user says too. A batch takes B T + 1 tokens, as in
    pretraining. The state also says how many batches there were, what share of the rows had been
    read before the first epoch ended, and whether it has ended.

    Raises:
        Refused: There are no conversations, or one is malformed.
    """
    _, rank, _, world = get_dist_info()
    if not len(dataset):
        raise Refused("there are no conversations to learn from; choose other data")
    size = len(dataset)
    fresh = {"row": rank, "token": 0, "batches": 0, "read": 0.0, "ended": False}
    state = dict(resume_state_dict or fresh)
    cursor, skip = state["row"], state["token"]
    held: deque[tuple[int, int, list[int]]] = deque()  # row, how much of it is gone, what is left
    count, need = 0, B * T + 1
    while True:
        while count < need:
            try:
                ids, _ = tokenizer.render_conversation(dataset[cursor % size])
            except Refused as error:
                raise Refused(f"conversation {cursor % size}: {error}") from None
            held.append((cursor, skip, ids[skip:]))
            count += len(ids) - skip
            cursor, skip = cursor + world, 0
        tokens: list[int] = []
        while len(tokens) < need:
            row, gone, ids = held.popleft()
            taken = ids[: need - len(tokens)]
            tokens += taken
            if len(taken) < len(ids):
                held.appendleft((row, gone + len(taken), ids[len(taken) :]))
        count -= need
        row, gone = held[0][:2] if held else (cursor, 0)
        ended = cursor >= size
        state = {
            "row": row,
            "token": gone,
            "batches": state["batches"] + 1,
            "read": state["read"] if ended else cursor / size,
            "ended": ended,
        }
        window = torch.tensor(tokens, dtype=torch.long).to(device)
        yield window[:-1].view(B, T), window[1:].view(B, T), state


def collate(
    rows: Sequence[Row], pad: int, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Inputs and targets (rows, longest - 1), filled up on the right.

    The target of a position is the next id where the mask of that next id is 1, else -1; inputs
    are filled with `pad`, whose targets are -1.
    """
    width = max(len(ids) for ids, _ in rows) - 1
    inputs = torch.full((len(rows), width), pad, dtype=torch.long)
    targets = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for i, (ids, mask) in enumerate(rows):
        tokens = torch.tensor(ids, dtype=torch.long)
        learned = torch.tensor(mask[1:], dtype=torch.bool)
        inputs[i, : len(ids) - 1] = tokens[:-1]
        targets[i, : len(ids) - 1] = tokens[1:].where(learned, IGNORED)
    return inputs.to(device), targets.to(device)


def _start(state: Mapping[str, Any] | None, shards: int, rank: int, world: int) -> Place:
    if state is None:
        return Place(0, rank)
    exact = dict(state.get("next") or {})
    if state["pq_idx"] >= shards or exact.get("pq_idx", 0) >= shards:
        raise Refused(
            f"the state to resume from is in shard {state['pq_idx']} and there are {shards}; "
            "fetch the shards that the run was started with"
        )
    if (exact.pop("rank", None), exact.pop("world_size", None)) == (rank, world):
        return Place(**exact)
    return Place(state["pq_idx"], (state["rg_idx"] // world + 1) * world + rank)


def _groups(
    files: Sequence[str], place: Place, rank: int, world: int
) -> Iterator[tuple[Place, list[str]]]:
    """The texts of row groups from a place on, without end, and where the first of them is."""
    seen = False
    while True:
        with open_shard(files[place.pq_idx]) as file:
            while place.rg_idx < file.num_row_groups:
                seen = True
                yield place, read_group(file, place.rg_idx)
                place = Place(place.pq_idx, place.rg_idx + world, epoch=place.epoch)
        after = place.pq_idx + 1
        if after == len(files) and not seen and place.epoch:
            raise Refused(f"no shard has a row group for process {rank} of {world}; use fewer")
        place = Place(after % len(files), rank, epoch=place.epoch + after // len(files))


def _take(held: deque[tuple[Place, list[int]]], need: int) -> tuple[list[int], Place]:
    """The first so many tokens out of those held, and where the one after them is."""
    tokens: list[int] = []
    while True:
        place, ids = held.popleft()
        taken = ids[: need - len(tokens)]
        tokens += taken
        following = dataclasses.replace(place, token=place.token + len(taken))
        if len(tokens) == need:
            if len(taken) < len(ids):
                held.appendleft((following, ids[len(taken) :]))
            return tokens, following
