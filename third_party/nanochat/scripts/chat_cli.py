"""Talk with a model in a terminal.

python -m scripts.chat_cli                       quit or exit ends it, clear starts anew
python -m scripts.chat_cli -p "What is a robin?" one answer and done
"""

import contextlib
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from nanochat import cli
from nanochat.checkpoint_manager import load_model
from nanochat.common import Refused, compute_init, set_dtype
from nanochat.engine import Engine, TextStream

ROOM = 256
"""How many tokens an answer may have."""


@dataclass(frozen=True)
class Config:
    """Chat with a model."""

    SHORT: ClassVar = {
        "-i": "--source",
        "-g": "--model_tag",
        "-s": "--step",
        "-p": "--prompt",
        "-t": "--temperature",
        "-k": "--top_k",
        "-d": "--dtype",
    }

    source: str = "sft"
    model_tag: str | None = None
    step: int | None = None
    prompt: str = ""
    temperature: float = 0.6
    top_k: int = 50
    device_type: str = ""
    dtype: str = "bfloat16"


class Chat:
    """One conversation: what was said so far as tokens, and the engine that answers.

    When it no longer fits the context its oldest turns are forgotten.
    """

    def __init__(self, engine: Engine, temperature: float, top_k: int):
        self.engine, self.tokenizer = engine, engine.tokenizer
        self.sampling: dict[str, Any] = {"temperature": temperature, "top_k": top_k}
        self.room = min(ROOM, engine.model.config.sequence_len // 2)
        self.clear()

    def clear(self) -> None:
        """Begin a new conversation."""
        self.tokens = [self.tokenizer.get_bos_token_id()]

    def say(self, text: str) -> str:
        """Print the answer as it comes, and give it back.

        Raises:
            Refused: The message alone does not fit; the conversation is as before.
        """
        special = self.tokenizer.encode_special
        message = [special("<|user_start|>"), *self.tokenizer.encode(text)]
        message += [special("<|user_end|>"), special("<|assistant_start|>")]
        tokens = self.engine.fit([*self.tokens, *message], self.room)
        if len(tokens) < len(self.tokens) + len(message):
            print("(The beginning of the conversation is forgotten.)")
        stream, answer = TextStream(self.tokenizer), ""
        ends = (special("<|assistant_end|>"), special("<|bos|>"))
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C cuts the answer short
            for column, _ in self.engine.generate(tokens, max_tokens=self.room, **self.sampling):
                if column[0] in ends:
                    break
                tokens.append(column[0])
                shown = stream.push(column[0])
                answer += shown
                print(shown, end="", flush=True)
        answer += (rest := stream.rest())
        print(rest)
        self.tokens = [*tokens, special("<|assistant_end|>")]
        return answer


def main(config: Config) -> dict[str, str]:
    """Answer one prompt, or talk until the user quits; the last answer."""
    *_, device = compute_init(config.device_type)
    model, tokenizer, _ = load_model(
        config.source, device, phase="eval", model_tag=config.model_tag, step=config.step
    )
    set_dtype(model, config.dtype)
    chat = Chat(Engine(model, tokenizer), config.temperature, config.top_k)
    answer = chat.say(config.prompt) if config.prompt else _talk(chat)
    return {"answer": answer}


def _talk(chat: Chat) -> str:
    print("Say something. quit or exit ends the conversation, clear starts another.")
    answer = ""
    while True:
        try:
            text = input("\nUser: ").strip()
        except (EOFError, KeyboardInterrupt):
            text = "quit"
        if text.lower() in ("quit", "exit"):
            print("Goodbye.")
            return answer
        if text.lower() == "clear":
            chat.clear()
            print("A new conversation.")
        elif text:
            print("\nAssistant: ", end="")
            try:
                answer = chat.say(text)
            except Refused as refusal:
                print(f"({refusal})")


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
