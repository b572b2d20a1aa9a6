"""The report card of a run: a file of Markdown per stage, and one of all of them.

    python -m nanochat.report reset
    python -m nanochat.report generate

Each stage writes its own section into `report/` of the base folder when it is done; `generate`
puts them in order below a summary. Nothing in it names a machine or a user: the base folder and the
home are written as such, and what looks like a password or a key is left out.
"""

import contextlib
import datetime
import itertools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nanochat.common import Refused, get_base_dir, get_dist_info

SECTIONS = (
    "tokenizer-training",
    "tokenizer-evaluation",
    "base-model-training",
    "base-model-loss",
    "base-model-evaluation",
    "chat-evaluation-base",
    "midtraining",
    "chat-evaluation-mid",
    "chat-sft",
    "chat-evaluation-sft",
    "chat-rl",
    "chat-evaluation-rl",
)
"""In the order of the stages."""

COLUMNS = {
    "BASE": (
        *("base-model-evaluation", "chat-evaluation-base", "base-model-loss"),
        "base-model-training",
    ),
    "MID": ("chat-evaluation-mid", "midtraining"),
    "SFT": ("chat-evaluation-sft", "chat-sft"),
    "RL": ("chat-evaluation-rl", "chat-rl"),
}
"""The sections that each column of the summary is read from."""

METRICS = (
    "CORE",
    "ARC-Easy",
    "ARC-Challenge",
    "MMLU",
    "GSM8K",
    "HumanEval",
    "SpellingBee",
    "val_bpb",
    "val_loss",
    "kinds_acc",
    "sums_acc",
    "reward_after",
    "ChatCORE",
)
"""What is compared between stages, in this order."""

BUILTIN = " (builtin)"
"""After the name of a figure that is of questions of our own, and not of the published ones."""

HOURLY = {"H100": 3.00, "A100": 1.79, "V100": 0.55}
HOURLY_OTHER = 2.00
"""US dollars for an hour of one GPU, of which the cost of a run is reckoned."""

SECRET = re.compile(r"(key|secret|password|credential|api_token|auth_token)s?$", re.IGNORECASE)
BARS = "▁▂▃▄▅▆▇█"
TIME = "%Y-%m-%d %H:%M:%S"


def slug(title: str) -> str:
    """A title as the name of a file."""
    return title.lower().replace(" ", "-")


def curve(values: Sequence[float], width: int = 60) -> str:
    """A row of bars, each the mean of its share of the values; what is not finite is `x`."""
    width = min(width, len(values))
    if not width:
        return ""
    cuts = [len(values) * i // width for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    known = [m for m in means if abs(m) < float("inf")]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    span = (high - low) or 1.0
    top = len(BARS) - 1
    return "".join(
        BARS[round((m - low) / span * top)] if abs(m) < float("inf") else "x" for m in means
    )


def marked(figures: Mapping[str, Any], data: str) -> dict[str, Any]:
    """Figures of an evaluation, so named that ours are not taken for those of published tasks."""
    return {f"{name}{BUILTIN if data == 'builtin' else ''}": v for name, v in figures.items()}


def redacted(text: str) -> str:
    """Without the names of folders that name a user or a machine."""
    for folder, name in ((get_base_dir(), "$NANOCHAT_BASE_DIR"), (str(Path.home()), "~")):
        if len(folder) > 1:
            text = text.replace(folder, name)
    return text


class Report:
    """The report of the base folder.

    Args:
        folder: Where sections go.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def log(self, section: str, data: Iterable[Any]) -> Path:
        """Write a section, in place of the one of that title; texts stand as they are.

        Mappings become one line per entry. A list of numbers becomes a curve.
        """
        now = datetime.datetime.now(datetime.UTC).strftime(TIME)
        lines = [f"## {section}", f"timestamp: {now}", ""]
        for item in data:
            if isinstance(item, Mapping):
                lines += [line for k, v in item.items() if (line := _line(k, v))]
            elif item:
                lines.append(str(item))
            lines.append("")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{slug(section)}.md"
        _write(path, redacted("\n".join(lines)))
        return path

    def reset(self) -> Path:
        """Remove all sections, and write the header with what this run starts from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (*SECTIONS, "report"):
            (self.folder / f"{name}.md").unlink(missing_ok=True)
        path = self.folder / "header.md"
        _write(path, redacted(header()))
        return path

    def generate(self) -> Path:
        """All sections below the header and a summary, also as `report.md` where one stands.

        Raises:
            Refused: No stage has written anything.
        """
        texts = {name: self._section(name) for name in SECTIONS}
        if not any(texts.values()):
            raise Refused(f"no stage has reported in {self.folder}; run one first")
        head = self._section("header")
        parts = [head, *filter(None, texts.values()), summary(texts), duration(head, texts)]
        whole = "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"
        for path in (self.folder / "report.md", Path.cwd() / "report.md"):
            _write(path, whole)
        return self.folder / "report.md"

    def _section(self, name: str) -> str:
        path = self.folder / f"{name}.md"
        return path.read_text() if path.exists() else ""


class Silent(Report):
    """What every process but the first has: it writes nothing."""

    def log(self, section: str, data: Iterable[Any]) -> Path:
        return self.folder

    def reset(self) -> Path:
        return self.folder

    def generate(self) -> Path:
        return self.folder


def get_report() -> Report:
    """The report of the base folder, which only the first process writes."""
    folder = Path(get_base_dir()) / "report"
    return Report(folder) if get_dist_info()[1] == 0 else Silent(folder)


def summary(texts: Mapping[str, str]) -> str:
    """A table of the metrics that any stage has reported; of RL only what it was trained for."""
    found = {column: {} for column in COLUMNS}
    for column, names in COLUMNS.items():
        for name in reversed(names):
            found[column] |= dict(re.findall(r"^- (.+?): (-?[\d.]+)$", texts[name], re.MULTILINE))
    rows = []
    for metric in itertools.chain(*((name, name + BUILTIN) for name in METRICS)):
        cells = [found[column].get(metric, "-") for column in COLUMNS]
        if any(cell != "-" for cell in cells):
            rows.append(f"| {metric} | {' | '.join(cells)} |")
    if not rows:
        return ""
    columns = " | ".join(COLUMNS)
    return "\n".join(["## Summary", "", f"| Metric | {columns} |", "|---" * 5 + "|", *rows])


def duration(head: str, texts: Mapping[str, str]) -> str:
    """From the start of the run to its last section before reinforcement learning."""
    began = re.search(r"^Run started: (.+)$", head, re.MULTILINE)
    ends = [
        match[1]
        for name, text in texts.items()
        if "rl" not in name.split("-") and (match := re.search(r"^timestamp: (.+)$", text, re.M))
    ]
    if not began or not ends:
        return ""
    seconds = _when(max(ends)) - _when(began[1])
    minutes = max(0, int(seconds.total_seconds())) // 60
    return f"Wall clock until the last stage before RL: {minutes // 60} h {minutes % 60} min"


def header() -> str:
    """What a run starts from: code, machine, versions and the size of the code."""
    now = datetime.datetime.now(datetime.UTC).strftime(TIME)
    changed = "with changes" if _git("status", "--porcelain") else "clean"
    lines = [
        "# Report of a run",
        "",
        "### Code",
        f"- branch: {_git('branch', '--show-current') or 'unknown'}",
        f"- commit: {_git('rev-parse', '--short', 'HEAD') or 'unknown'} ({changed})",
        f"- message: {_git('log', '-1', '--format=%s') or 'unknown'}",
        "",
        "### Machine",
        f"- system: {platform.system()} on {platform.machine()}",
        f"- cores: {os.cpu_count()}",
        *_memory(),
        *_cards(),
        f"- Python {platform.python_version()}, torch {torch.__version__}",
        "",
        "### Size of the code",
        *_bulk(),
        "",
        f"Run started: {now}",
    ]
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any) -> str:
    if SECRET.search(key) or value is None:
        return ""
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, float) for v in value):
        if len(value) <= 3:
            return f"- {key}: {', '.join(f'{v:.4f}' for v in value)}"
        return (
            f"- {key}: {value[0]:.4f} to {value[-1]:.4f} in {len(value)}\n\n      {curve(value)}\n"
        )
    if isinstance(value, float):
        return (
            f"- {key}: {value:.4f}" if value == 0 or abs(value) >= 1e-4 else f"- {key}: {value:g}"
        )
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"- {key}: {value:,}"
    return f"- {key}: {value if isinstance(value, (int, str)) else json.dumps(value, default=str)}"


def _git(*words: str) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        folder = Path(__file__).parent
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()
    return ""


def _memory() -> list[str]:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return []
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return [f"- memory: {size / 2**30:.1f} GiB"]


def _cards() -> list[str]:
    if not torch.cuda.is_available():
        return ["- GPUs: none"]
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    rate = sum(next((v for k, v in HOURLY.items() if k in c.name), HOURLY_OTHER) for c in cards)
    memory = sum(c.total_memory for c in cards) / 2**30
    return [
        f"- GPUs: {len(cards)} x {cards[0].name}, {memory:.1f} GiB together",
        f"- CUDA: {torch.version.cuda}",
        f"- rate: ${rate:.2f} an hour",
    ]


def _bulk() -> list[str]:
    root = Path(__file__).parents[1]
    files = [p for part in ("nanochat", "scripts", "tasks") for p in (root / part).glob("*.py")]
    texts = [path.read_text() for path in files]
    lines = [f"- {len(files)} files, {sum(t.count(chr(10)) for t in texts):,} lines of Python"]
    lines.append(f"- {sum(map(len, texts)):,} characters")
    lock = next((p / "uv.lock" for p in root.parents if (p / "uv.lock").exists()), None)
    return lines + ([f"- uv.lock: {lock.read_text().count(chr(10)):,} lines"] if lock else [])


def _when(text: str) -> datetime.datetime:
    return datetime.datetime.strptime(text.strip(), TIME).replace(tzinfo=datetime.UTC)


def _write(path: Path, text: str) -> None:
    """A file that appears whole."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text)
    draft.replace(path)


def main(words: Sequence[str]) -> int:
    """Do what the command line says; the exit code."""
    word = words[0] if words else "generate"
    if len(words) > 1 or word not in ("generate", "reset"):
        print("error: say `generate` or `reset`", file=sys.stderr)
        return 2
    try:
        print(f"Wrote {getattr(get_report(), word)()}")
    except Refused as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
