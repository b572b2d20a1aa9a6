"""How good a language model is: what it answers, and how likely texts are to it.

A nanochat checkpoint is asked as it is, without conversion. Built-in tasks need no network:

    kinds    what kind of thing something is; a way of asking that training leaves out for each
    sums     sums of two digits of which training leaves these out
    texts    bits per byte of built-in texts that no training set holds

Every other task is one of the lm-evaluation-harness, to which a checkpoint is presented through
`harness_model`. No number is given without its interval of 95 %.

Source:
    Gao et al. 2024, The Language Model Evaluation Harness; its conventions for likelihoods.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from fractal_core.errors import Refused, first_line, require_known
from fractal_core.seeing import rate_interval

BUILT_IN = ("kinds", "sums", "texts")
CONFIDENCE = 0.95
ANSWER_TOKENS = 64
TEXTS = 200
"""Built-in texts whose likelihood is taken, unless a limit says less."""

TEXTS_SEED = 1_000_003
"""Of these texts; training sets are drawn with other seeds."""

RESAMPLES = 2_000
LOGITS = 2**29
"""Logits that exist at a time, at most, if a single text has not more: 2 GiB in float32."""


@dataclass(frozen=True)
class Score:
    """A measured number and its interval of 95 %.

    Args:
        task: Where it comes from.
        metric: What it is; `accuracy` and `acc` are shares of right answers.
        value: The number.
        low: Lower end of the interval.
        high: Upper end.
        count: Questions or texts that it is the mean of.
        chance: What guessing gives, where that is known.
    """

    task: str
    metric: str
    value: float
    low: float
    high: float
    count: int
    chance: float | None = None


def share(task: str, metric: str, right: int, count: int, chance: float | None = None) -> Score:
    """The share of right answers, with the exact interval of `seeing.rate_interval`."""
    low, high = rate_interval(np.array(float(right)), float(count))
    return Score(task, metric, right / count, float(low), float(high), count, chance)


def ratio(task: str, metric: str, parts: np.ndarray, sizes: np.ndarray) -> Score:
    """A sum over a sum, as bits over bytes; the interval comes from drawing the texts again."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(parts), np.full(len(parts), 1 / len(parts)), size=RESAMPLES)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile((drawn @ parts) / (drawn @ sizes), [tail, 100 - tail])
    value = float(parts.sum() / sizes.sum())
    return Score(task, metric, value, float(low), float(high), len(parts))


@dataclass(frozen=True)
class Prompt:
    """What a model is to continue.

    Args:
        tokens: Token ids, beginning with `<|bos|>`.
        room: The most tokens of an answer.
        until: Texts of which any ends the answer; it is not a part of it.
    """

    tokens: list[int]
    room: int
    until: tuple[str, ...] = ()


@dataclass
class Reader:
    """A model that is asked for likelihoods and answers, several texts at a time.

    `<|bos|>` stands before every text. What is longer than the model's context loses its
    beginning, `<|bos|>` with it.

    Args:
        model: A nanochat model.
        tokenizer: Its tokenizer.
        rows: Texts at a time.
        tell: Called with how many texts were read, and of how many.
    """

    model: Any
    tokenizer: Any
    rows: int = 16
    tell: Callable[[int, int], Any] = lambda done, count: None

    @property
    def context(self) -> int:
        """Positions that the model was trained with."""
        return self.model.config.sequence_len

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each context and continuation, log P(continuation | context) in nats, and whether it is
        what the model would have said, greedily.

        Spaces at the end of a context count as the beginning of the continuation, and both are
        encoded together, so that a word has the tokens that it has within a text.
        """
        bos, items = self.tokenizer.get_bos_token_id(), []
        for context, continuation in pairs:
            bare = context.rstrip()
            whole = self.tokenizer.encode(context + continuation, prepend=bos)
            before = len(self.tokenizer.encode(bare, prepend=bos))
            items.append((whole[:-1], whole[min(before, len(whole) - 1) :]))
        return self._scored(items)

    def text_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """Of each text, log P(text) in nats.

        A text longer than the context is cut into windows. Each token is predicted once; the last
        window is as long as the others and counts only what was not predicted before.
        """
        bos, size = self.tokenizer.get_bos_token_id(), self.context
        items, owners = [], []
        for number, text in enumerate(texts):
            tokens = self.tokenizer.encode(text, prepend=bos)
            for start in range(0, len(tokens) - 1, size):
                end = min(start + size, len(tokens) - 1)
                items.append((tokens[max(0, end - size) : end], tokens[start + 1 : end + 1]))
                owners.append(number)
        totals = [0.0] * len(texts)
        for number, (nats, _) in zip(owners, self._scored(items), strict=True):
            totals[number] += nats
        return totals

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        """The greedy continuation of each prompt, up to a text or a token that ends it.

        A prompt that leaves less room than its answer may take loses its beginning, but keeps at
        least half of the context.
        """
        kept = [
            Prompt(p.tokens[-max(self.context - p.room, self.context // 2) :], p.room, p.until)
            for p in prompts
        ]
        said = self._batched(self._continued, kept, [len(p.tokens) for p in kept])
        return [_before(text, p.until) for text, p in zip(said, prompts, strict=True)]

    def _batched(self, ask: Callable, items: Sequence, lengths: Sequence[int]) -> list:
        """What `ask` says of the items, asked with those of like length together."""
        import torch

        vocabulary = self.model.config.vocab_size
        waiting = sorted(range(len(items)), key=lambda i: -lengths[i])
        said: list[Any] = [None] * len(items)
        while waiting:
            fit = LOGITS // (vocabulary * max(1, lengths[waiting[0]]))
            chosen = waiting[: max(1, min(self.rows, fit))]
            waiting = waiting[len(chosen) :]
            with torch.inference_mode():
                for i, value in zip(chosen, ask([items[i] for i in chosen]), strict=True):
                    said[i] = value
            self.tell(len(items) - len(waiting), len(items))
        return said

    def _scored(self, items: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Of inputs and targets, where the targets follow the last inputs."""
        cut = [(ids[-self.context :], targets[-self.context :]) for ids, targets in items]
        return self._batched(self._score, cut, [len(ids) for ids, _ in cut])

    def _score(self, items: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        import torch

        # Filled up on the right: what comes later changes nothing that was predicted before.
        width = max(len(ids) for ids, _ in items)
        inputs = torch.zeros(len(items), width, dtype=torch.long)
        for row, (ids, _) in enumerate(items):
            inputs[row, : len(ids)] = torch.tensor(ids)
        logits = self.model(inputs.to(self.model.get_device()))
        scored = []
        for row, (ids, targets) in enumerate(items):
            own = logits[row, len(ids) - len(targets) : len(ids)]
            wanted = torch.tensor(targets, device=own.device)
            nats = own.log_softmax(-1).gather(1, wanted[:, None]).double().sum()
            scored.append((float(nats), bool((own.argmax(-1) == wanted).all())))
        return scored

    def _continued(self, prompts: Sequence[Prompt]) -> list[str]:
        """Greedy answers. Rows go through the positions together: one whose prompt is longer is fed
        its own tokens where a shorter one already answers."""
        import torch
        from nanochat.engine import KVCache

        config, device = self.model.config, self.model.get_device()
        ends = {self.tokenizer.encode_special(t) for t in ("<|assistant_end|>", "<|bos|>")}
        length = min(len(p.tokens) for p in prompts)
        head = config.n_embd // config.n_head
        cache = KVCache(len(prompts), config.n_kv_head, self.context, head, config.n_layer)
        fed = torch.tensor([p.tokens[:length] for p in prompts], device=device)
        said: list[list[int]] = [[] for _ in prompts]
        done = [False] * len(prompts)
        while True:
            best = self.model(fed, kv_cache=cache)[:, -1].argmax(-1).tolist()
            for row, prompt in enumerate(prompts):
                if length < len(prompt.tokens):
                    best[row] = prompt.tokens[length]
                elif not done[row]:
                    done[row] = best[row] in ends
                    if not done[row]:
                        said[row].append(best[row])
                        full = len(said[row]) >= min(prompt.room, self.context - len(prompt.tokens))
                        text = self.tokenizer.decode(said[row]) if prompt.until else ""
                        done[row] = full or any(stop in text for stop in prompt.until)
            if all(done):
                return [self.tokenizer.decode(tokens) for tokens in said]
            fed, length = torch.tensor(best, device=device)[:, None], length + 1


def evaluate(
    reader: Reader,
    tasks: Sequence[str] = BUILT_IN,
    limit: int | None = None,
    folder: Path | None = None,
) -> list[Score]:
    """The scores of a model in tasks, each with its interval.

    Args:
        reader: The model.
        tasks: Built-in ones, or names that the lm-evaluation-harness knows.
        limit: So many questions of each task, from its first; None asks all.
        folder: Tasks of your own, as the YAML files that the harness reads.

    Raises:
        Refused: A task is unknown or cannot be had, or the harness is not installed.
    """
    if not tasks or (limit is not None and limit < 1):
        raise Refused("name at least one task, and a limit of at least 1")
    foreign = [task for task in tasks if task not in BUILT_IN]
    results = _harness(reader, foreign, limit, folder) if foreign else {}
    scores: list[Score] = []
    for task in tasks:
        if task == "texts":
            scores.append(_texts(reader, limit))
        elif task in BUILT_IN:
            scores.append(_questions(reader, task, limit))
    return scores + [score for task in foreign for score in harness_scores(results, task)]


def _questions(reader: Reader, name: str, limit: int | None) -> Score:
    from tasks.builtin import Kinds, Sums

    task = {"kinds": Kinds, "sums": Sums}[name]("test", stop=limit)
    render = reader.tokenizer.render_for_completion
    said = reader.answers([Prompt(render(problem), ANSWER_TOKENS) for problem in task])
    right = sum(task.evaluate(problem, text) for problem, text in zip(task, said, strict=True))
    return share(name, "accuracy", int(right), len(task), task.chance)


def _texts(reader: Reader, limit: int | None) -> Score:
    from nanochat import corpus

    texts = corpus.documents(min(TEXTS, limit or TEXTS), seed=TEXTS_SEED)
    bits = -np.array(reader.text_likelihoods(texts)) / math.log(2)
    sizes = np.array([len(text.encode()) for text in texts], dtype=float)
    return ratio("texts", "bits per byte", bits, sizes)


def harness_model(reader: Reader) -> Any:
    """The model as the lm-evaluation-harness asks for one, an `lm_eval.api.model.LM`.

    Raises:
        Refused: The harness is not installed; or, when asked, answers are to be drawn at random.
    """
    try:
        from lm_eval.api.model import LM  # type: ignore[import-not-found] - an extra
    except ModuleNotFoundError:
        raise Refused(
            f"tasks other than {', '.join(BUILT_IN)} are asked by the lm-evaluation-harness; "
            "run `uv sync --extra eval`"
        ) from None

    class Checkpoint(LM):
        """Likelihoods and greedy answers of a checkpoint."""

        def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
            return reader.likelihoods([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list) -> list[float]:
            return reader.text_likelihoods([request.args[0] for request in requests])

        def generate_until(self, requests: list) -> list[str]:
            return reader.answers([_prompt(reader, *request.args) for request in requests])

    return Checkpoint()


def _prompt(reader: Reader, context: str, wishes: dict[str, Any]) -> Prompt:
    """A harness's request for an answer."""
    if wishes.get("do_sample") and wishes.get("temperature", 1.0) > 0:
        raise Refused("this task draws answers at random; only greedy ones are given here")
    until = wishes.get("until") or ()
    tokens = reader.tokenizer.encode(context, prepend=reader.tokenizer.get_bos_token_id())
    stops = (until,) if isinstance(until, str) else tuple(until)
    return Prompt(tokens, wishes.get("max_gen_toks", 256), stops)


def _harness(reader: Reader, tasks: list[str], limit: int | None, folder: Path | None) -> dict:
    """What the harness says of a model."""
    model = harness_model(reader)
    from lm_eval import evaluator  # type: ignore[import-not-found] - an extra
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found] - an extra

    manager = TaskManager(include_path=None if folder is None else str(folder))
    for task in tasks:
        require_known("task", task, [*BUILT_IN, *manager.all_tasks])
    try:
        found = evaluator.simple_evaluate(
            model=model, tasks=list(tasks), limit=limit, task_manager=manager, bootstrap_iters=1000
        )
        return cast(dict, found)  # it is None in no process but those that help the first
    except Refused:
        raise
    except Exception as error:  # noqa: BLE001 - data sets raise whatever their transport does
        raise Refused(
            f"{', '.join(tasks)} could not be asked ({first_line(error)}); check the network, or ask "
            f"{', '.join(BUILT_IN)}"
        ) from None


def harness_scores(results: dict, task: str) -> list[Score]:
    """The scores of one task or group among the harness's results, with their intervals.

    Shares of right answers get the exact interval; perplexities and bits per byte that of drawing
    the texts again; other metrics 1.96 of the harness's standard errors. What has neither of these
    is left out.
    """
    subtasks = results.get("group_subtasks", {}).get(task) or [task]
    if subtasks != [task]:
        return [score for name in subtasks for score in harness_scores(results, name)]
    found, samples = results["results"][task], results["samples"][task]
    scores = []
    for key, value in found.items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        points = [s[metric] for s in samples if s["filter"] == kept and metric in s]
        error = found.get(f"{metric}_stderr,{kept}")
        scores.append(_harness_score(task, metric, value, points, error))
    return [score for score in scores if score is not None]


def _harness_score(task: str, metric: str, value: Any, points: list, error: Any) -> Score | None:
    """A metric of the harness, from its value for each question and its standard error."""
    if points and all(isinstance(p, tuple | list) and len(p) == 2 for p in points):
        nats, sizes = np.array(points, dtype=float).T
        base = ratio(task, metric, -nats, sizes)
        for read in (math.exp, lambda x: x / math.log(2)):
            if math.isclose(read(base.value), value, rel_tol=1e-6):
                ends = read(base.low), read(base.high)
                return Score(task, metric, float(value), *ends, base.count)
    elif points and all(point in (0, 1) for point in points):
        return share(task, metric, int(sum(points)), len(points))
    if isinstance(error, float) and math.isfinite(error):
        ends = float(value) - 1.96 * error, float(value) + 1.96 * error
        return Score(task, metric, float(value), *ends, len(points))
    return None


def _before(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of the texts that end it."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]
