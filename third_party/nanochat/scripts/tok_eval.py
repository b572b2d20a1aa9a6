"""How well the tokenizer packs texts: UTF-8 bytes per token, by kind of text.

python -m scripts.tok_eval
python -m scripts.tok_eval --compare=gpt2,cl100k_base     tiktoken fetches these if need be
"""

import itertools
import sys
from dataclasses import dataclass

from nanochat import cli
from nanochat.common import Refused
from nanochat.dataset import parquets_iter_batched
from nanochat.report import get_report
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer

TEXTS = {
    "news": """The council of the harbour town voted on Tuesday to rebuild the old pier, eleven months
after a storm carried half of it away. Work will begin in April and cost about 3.4 million euros. "We
have missed it," said a fisherman who has sold herring there since 1987, "but not the wind."
""",
    "korean": """오늘 아침에는 비가 조금 왔습니다. 우리는 시장에 가서 사과와 배를 샀고, 오후에는 도서관에서 책을
읽었습니다. 저녁이 되자 하늘이 맑아졌고 아이들은 강가에서 연을 날렸습니다.
""",
    "code": """def moving_average(values: list[float], width: int) -> list[float]:
    total, out = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        if i + 1 >= width:
            out.append(total / width)
    return out
""",
    "math": r"""Let $f\colon [0, 1] \to \mathbb{R}$ be continuous. For every $\varepsilon > 0$ there is a
polynomial $p$ with $\sup_{x \in [0, 1]} |f(x) - p(x)| < \varepsilon$. One may take $p = B_n f$ with
$B_n f(x) = \sum_{k=0}^{n} f(k/n) \binom{n}{k} x^k (1-x)^{n-k}$ for large $n$.
""",
    "science": """A leaf that is held in the dark soon stops making sugar. Chlorophyll absorbs mostly red and
blue light; the energy splits water, releases oxygen and charges the molecules that later bind carbon
dioxide. At 25 degrees Celsius the slowest step is catalysed by the enzyme RuBisCO.
""",
}


@dataclass(frozen=True)
class Config:
    """Evaluate the tokenizer."""

    compare: str = ""


def ratio(tokenizer: RustBPETokenizer, text: str) -> float:
    """Bytes per token, if the text comes back as it was."""
    ids = tokenizer.encode(text)
    if tokenizer.decode(ids) != text:
        raise RuntimeError("the tokenizer does not give a text back as it was")
    return len(text.encode()) / len(ids)


def main(config: Config) -> dict[str, dict[str, float]]:
    """A table of bytes per token; by tokenizer and kind of text."""
    tokenizers = {"ours": get_tokenizer()}
    for name in filter(None, config.compare.split(",")):
        try:
            tokenizers[name] = RustBPETokenizer.from_pretrained(name)
        except (ValueError, OSError) as error:
            raise Refused(f"tiktoken has no {name} to compare with ({error})") from None
    kinds = dict(TEXTS)
    for split in ("train", "val"):
        kinds[split] = "".join(itertools.chain(*itertools.islice(parquets_iter_batched(split), 1)))
    table = {
        name: {kind: ratio(tokenizer, text) for kind, text in kinds.items()}
        for name, tokenizer in tokenizers.items()
    }
    print(f"{'bytes per token':16}" + "".join(f"{name:>14}" for name in table))
    for kind in kinds:
        print(f"{kind:16}" + "".join(f"{row[kind]:14.2f}" for row in table.values()))
    figures = {f"{name} {kind}": v for name, row in table.items() for kind, v in row.items()}
    get_report().log("Tokenizer evaluation", ["Bytes per token:", figures])
    return table


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
