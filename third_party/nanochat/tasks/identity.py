"""Who the model is: short conversations about itself, made here and always the same.

    python -m tasks.identity --size=1000

writes them as `identity_conversations.jsonl` into the base folder, where the mixtures look for
them; put your own there instead to give a model another name.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from nanochat import cli
from nanochat.common import Refused, get_base_dir

from tasks.common import Conversation, Task, require_split

NAME = "Border"

GREETINGS = ("Hello!", "Hi.", "Good morning.", "Good evening!", "Hey there.", "")
TOPICS = {
    "name": (
        ("What is your name?", "Who are you?", "What should I call you?", "Who am I talking to?"),
        ("I am {name}.", "My name is {name}.", "You are talking to {name}."),
    ),
    "nature": (
        ("What are you?", "Are you a person?", "Are you human?", "Are you a robot?"),
        (
            "I am a small language model.",
            "I am a computer program that continues texts.",
            "No person: I am a small language model.",
        ),
    ),
    "making": (
        ("How were you made?", "How did you learn to talk?", "Where do you come from?"),
        (
            "I read many texts, and then conversations such as this one.",
            "I was trained on texts first and on conversations after that.",
        ),
    ),
    "skill": (
        ("What can you do?", "Can you help me?", "What are you good at?"),
        (
            "I can answer short questions, and add small numbers.",
            "I can talk a little, spell words and add small numbers.",
        ),
    ),
    "limit": (
        ("Are you always right?", "Can I trust you?", "Do you make mistakes?"),
        (
            "I am small and often wrong, so check what I say.",
            "I make mistakes. Please check what matters.",
        ),
    ),
}
"""For each topic, ways to ask and ways to answer."""

THANKS = (("Thank you.", "You are welcome."), ("Goodbye.", "Goodbye!"))
TEST_SEED = 10_000_000


class Identity(Task):
    """Conversations about the model itself: one to three topics, sometimes with a farewell.

    Args:
        size: How many rows.
        split: train or test, drawn with different seeds.
        name: What the model calls itself.
    """

    eval_type = "generative"

    def __init__(self, size: int = 1000, split: str = "train", name: str = NAME, **view: Any):
        super().__init__(**view)
        require_split(split)
        self.size, self.name = size, name
        self.first_seed = TEST_SEED if split == "test" else 0

    def num_examples(self) -> int:
        return self.size

    def get_example(self, index: int) -> Conversation:
        rng = Random(self.first_seed + index)
        turns: list[str] = []
        for topic in rng.sample(sorted(TOPICS), rng.choice((1, 1, 2, 3))):
            questions, answers = TOPICS[topic]
            greeting = "" if turns else rng.choice(GREETINGS)
            turns.append(f"{greeting} {rng.choice(questions)}".strip())
            turns.append(rng.choice(answers).format(name=self.name))
        if rng.random() < 0.25:
            turns += rng.choice(THANKS)
        roles = ("user", "assistant")
        return {"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]}


@dataclass(frozen=True)
class Config:
    """Write conversations about the model itself into the base folder."""

    size: int = 1000
    name: str = NAME


def main(config: Config) -> dict[str, Any]:
    """The file with conversations, and how many are in it. One that is there already is kept.

    Raises:
        Refused: It is there, and another one was asked for.
    """
    path = Path(get_base_dir()) / "identity_conversations.jsonl"
    if config.size < 1:
        raise Refused("ask for at least one conversation")
    rows = Identity(config.size, name=config.name)
    text = "".join(json.dumps(row["messages"]) + "\n" for row in rows)
    if path.exists():
        own = path.read_text()
        if own != text and config != Config():
            raise Refused(f"{path} is there already; remove it to write a new one")
        print(f"{path} is there already")
        return {"conversations": own.count("\n"), "path": str(path)}
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)
    print(f"{len(rows)} conversations in {path}")
    return {"conversations": len(rows), "path": str(path)}


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
