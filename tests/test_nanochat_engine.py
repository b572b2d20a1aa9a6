"""The engine with a model that says what it is told to, and the calculator."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiktoken
import torch
from nanochat.calculator import use_calculator
from nanochat.common import Refused
from nanochat.engine import Engine, KVCache, TextStream, sample_next_token
from nanochat.pickled import state_of
from nanochat.tokenizer import RustBPETokenizer

DATA = Path(__file__).parent / "data"
SPECIAL = json.loads((DATA / "nanochat_tokenizer.json").read_text())["special"]
BOS, END = SPECIAL["<|bos|>"], SPECIAL["<|assistant_end|>"]
CALL, CALLED = SPECIAL["<|python_start|>"], SPECIAL["<|python_end|>"]
OUTPUT, OUTPUT_END = SPECIAL["<|output_start|>"], SPECIAL["<|output_end|>"]


@pytest.fixture(scope="module")
def tokenizer() -> RustBPETokenizer:
    state = state_of(DATA / "nanochat_tokenizer.pkl")
    return RustBPETokenizer(tiktoken.Encoding("rustbpe", **state), "<|bos|>")


class Script:
    """A model whose n-th answer is the n-th token of a script, or spread over several tokens.

    It also writes down what it is fed, and puts it through the cache as a model would.
    """

    def __init__(self, *tokens: int | tuple[int, ...], sequence_len: int = 64):
        self.config = SimpleNamespace(
            sequence_len=sequence_len, vocab_size=700, n_layer=2, n_head=2, n_kv_head=1, n_embd=4
        )
        self.script = [(token,) if isinstance(token, int) else token for token in tokens]
        self.fed: list[list[list[int]]] = []

    def get_device(self) -> torch.device:
        return torch.device("cpu")

    def forward(self, ids: torch.Tensor, kv_cache: KVCache) -> torch.Tensor:
        start = kv_cache.get_pos()
        k = ids[:, None, :, None].expand(-1, 1, -1, 2).float()
        for layer in range(2):
            keys, values = kv_cache.insert_kv(layer, k + layer, -k)
            assert keys.size(2) == start + ids.size(1)
        self.fed.append((values[:, 0, :, 0].neg().long()).tolist())
        logits = torch.full((*ids.shape, 700), -30.0)
        answer = self.script[min(len(self.fed), len(self.script)) - 1]
        logits[:, -1, list(answer)] = 30.0
        return logits


def columns(model: Script, tokenizer, **kwargs) -> tuple[list, list]:
    pairs = list(Engine(model, tokenizer).generate([BOS, 65], **kwargs))
    return [column for column, _ in pairs], [mask for _, mask in pairs]


def test_what_was_said_is_fed_back(tokenizer):
    """The prompt goes in once, and each later step adds the token of each row to the cache."""
    model = Script(70, 71, END)
    assert columns(model, tokenizer, num_samples=2) == (
        [[70] * 2, [71] * 2, [END] * 2],
        [[1, 1]] * 3,
    )
    assert model.fed == [[[BOS, 65]], [[BOS, 65, 70]] * 2, [[BOS, 65, 70, 71]] * 2]


@pytest.mark.parametrize("stop", [END, BOS])
def test_samples_end_where_the_turn_ends(tokenizer, stop):
    """The token that ends them is streamed, and left out of whole samples."""
    engine = Engine(Script(70, stop), tokenizer)
    assert [column for column, _ in engine.generate([BOS, 65])] == [[70], [stop]]
    engine = Engine(Script(70, stop), tokenizer)
    assert engine.generate_batch([BOS, 65]) == ([[BOS, 65, 70]], [[0, 0, 1]])


def test_a_call_is_answered(tokenizer):
    """The answer is forced token by token, with mask 0, whatever the model would have said."""
    expression = tokenizer.encode("12*5")
    answer = tokenizer.encode("60")
    forced = [OUTPUT, *answer, OUTPUT_END]
    model = Script(CALL, *expression, CALLED, *[90] * len(forced), 71, END)
    tokens, mask = columns(model, tokenizer)
    expected = [CALL, *expression, CALLED, *forced, 71, END]
    assert [column[0] for column in tokens] == expected
    spoken = len(expression) + 2
    assert [m[0] for m in mask] == [1] * spoken + [0] * len(forced) + [1, 1]
    assert model.fed[-1] == [[BOS, 65, *expected[:-1]]]


@pytest.mark.parametrize("expression", ["", "12*", "print"])
def test_a_call_without_an_answer_is_not_answered(tokenizer, expression):
    """The model goes on as if nothing had been asked."""
    tokens, mask = columns(Script(CALL, *tokenizer.encode(expression), CALLED, 71, END), tokenizer)
    assert [column[0] for column in tokens][-3:] == [CALLED, 71, END]
    assert all(m == [1] for m in mask)


def test_samples_differ_from_the_first_token(tokenizer):
    """Each row draws for itself, and the same seed draws the same."""
    first, _ = next(
        Engine(Script(tuple(range(65, 90)), END), tokenizer).generate([BOS], num_samples=16)
    )
    again, _ = next(
        Engine(Script(tuple(range(65, 90)), END), tokenizer).generate([BOS], num_samples=16)
    )
    assert len(set(first)) > 4
    assert first == again


def test_a_finished_row_waits_for_the_others(tokenizer):
    """Rows end at different columns; whole samples are cut where each one ended."""
    model = Script((70, END), (71, END), (72, END), END)
    engine = Engine(model, tokenizer)
    results, masks = engine.generate_batch([BOS], num_samples=8, seed=1)
    assert len({len(row) for row in results}) > 1
    assert all(END not in row for row in results)
    assert [len(row) for row in results] == [len(mask) for mask in masks]


def test_generation_ends_with_the_context(tokenizer):
    """No position beyond the context is asked for, nor more tokens than allowed."""
    model = Script(70, sequence_len=8)
    assert len(columns(model, tokenizer)[0]) == 7
    assert max(len(row) for batch in model.fed for row in batch) == 8
    assert len(columns(Script(70), tokenizer, max_tokens=3)[0]) == 3
    assert columns(Script(70), tokenizer, max_tokens=0) == ([], [])


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ([], "empty"),
        ([65] * 9, "9 tokens and the context of the model 8"),
        ([BOS, 700], "token id 700 is outside the vocabulary of 700"),
        ([-1], "token id -1 is outside"),
    ],
)
def test_a_prompt_that_cannot_be_fed_is_refused(tokenizer, prompt, sentence):
    """The model is not asked at all."""
    model = Script(70, sequence_len=8)
    with pytest.raises(Refused, match=sentence):
        Engine(model, tokenizer).generate_batch(prompt)
    with pytest.raises(Refused, match="at least one sample"):
        Engine(model, tokenizer).generate_batch([BOS], num_samples=0)
    assert model.fed == []


def test_a_long_chat_forgets_its_oldest_turns(tokenizer):
    """It starts again at a user's turn that leaves room; a single message too long is refused."""
    engine = Engine(Script(70, sequence_len=30), tokenizer)
    user, assistant = SPECIAL["<|user_start|>"], SPECIAL["<|assistant_start|>"]
    turn = [user, 65, SPECIAL["<|user_end|>"], assistant, 66, END]
    chat = [BOS, *turn * 5]
    assert engine.fit([BOS, *turn], room=10) == [BOS, *turn]
    assert engine.fit(chat, room=10) == [BOS, *turn * 3]
    with pytest.raises(Refused, match="shorten it"):
        engine.fit([BOS, user, *[65] * 30], room=10)


def test_the_cache_grows_without_losing_anything():
    """What was inserted comes back for every layer, across growth and after a copy."""
    torch.manual_seed(0)
    cache = KVCache(batch_size=2, num_heads=3, seq_len=4, head_dim=5, num_layers=2)
    k, v = torch.randn(2, 2, 2, 3, 9, 5)
    for start, end in ((0, 3), (3, 4), (4, 9)):
        for layer in range(2):
            keys, values = cache.insert_kv(
                layer, k[layer, :, :, start:end], v[layer, :, :, start:end]
            )
            torch.testing.assert_close(keys, k[layer, :, :, :end])
            torch.testing.assert_close(values, v[layer, :, :, :end])
    assert cache.kv_cache.size(4) % 1024 == 0
    copy = KVCache(batch_size=2, num_heads=3, seq_len=4, head_dim=5, num_layers=2)
    copy.prefill(cache)
    assert copy.get_pos() == 9
    keys, _ = copy.insert_kv(0, k[0, :, :, :1], v[0, :, :, :1])
    torch.testing.assert_close(keys[:, :, :9], k[0])
    copy.reset()
    assert copy.get_pos() == 0
    with pytest.raises(Refused, match="only into a cache that is empty"):
        copy.prefill(cache)
    with pytest.raises(Refused, match="of 2 rows cannot be copied into 3"):
        KVCache(3, 3, 4, 5, 2).prefill(cache)
    with pytest.raises(Refused, match="different sizes"):
        KVCache(2, 1, 4, 5, 2).prefill(cache)


def draw(logits: list[float], count: int = 400, **kwargs) -> set[int]:
    rng = torch.Generator().manual_seed(0)
    rows = torch.tensor(logits).expand(count, -1)
    return set(sample_next_token(rows, rng, **kwargs)[:, 0].tolist())


def test_sampling_keeps_its_limits():
    """Greedy takes the best, top-k the best few, and 0 or more than there are means all."""
    logits = [0.0, 1.0, 0.5, 0.9]
    assert draw(logits, temperature=0) == {1}
    assert draw(logits, top_k=2) == {1, 3}
    assert (
        draw(logits, top_k=0) == draw(logits, top_k=None) == draw(logits, top_k=99) == {0, 1, 2, 3}
    )
    assert draw(logits, temperature=0.001) == {1}
    with pytest.raises(Refused, match="not be negative"):
        draw(logits, top_k=-1)


def test_half_a_character_is_held_back(tokenizer):
    """A stream shows whole characters, and in the end what is left."""
    stream = TextStream(tokenizer)
    assert [stream.push(byte) for byte in "aé€".encode()] == ["a", "", "é", "", "", "€"]
    assert stream.push("é".encode()[0]) == ""
    assert stream.rest() == "\N{REPLACEMENT CHARACTER}"
    assert stream.rest() == ""


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12/60", 0.2),
        ("1,000+2", 1002),
        (" (2 + 3) * -4 ", -20),
        ("7//2", 3),
        (".5 + 1.", 1.5),
        ("10%3", None),
        ("2**3", None),
        ("1/0", None),
        ("012", None),
        ("()", None),
        ("(" * 500 + "1" + ")" * 500, None),
        ("-" * 999 + "1", None),
        ("9*" * 600 + "9", None),
        ("'strawberry'.count('r')", 3),
        ('"strawberry".count("r")', 3),
        ("'-'.count('-')", None),
        ("'profile'.count('p')", None),
        ("'a'.upper()", None),
        ("count('a')", None),
        ("a.count(b)", None),
        ("'a'.count('a').__class__", None),
        ("'a'.count('a').real", None),
        ("print('a')", None),
        ("1\n+1", None),
        ("", None),
        (",", None),
    ],
)
def test_the_calculator_knows_two_things(expression, value):
    """Arithmetic and counting have a value, and nothing else has."""
    assert use_calculator(expression) == value


@pytest.mark.parametrize("opening", ["(", "-", "+", "((((-", "1+(", "1-"])
@pytest.mark.parametrize("length", [10, 100, 999, 100_000])
def test_the_calculator_survives_what_it_is_asked(opening, length):
    """Deep and long expressions have a value or none; they never end the program."""
    use_calculator(opening * length)
    use_calculator(opening * length + "1" + ")" * (opening.count("(") * length))
