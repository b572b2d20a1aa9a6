"""Functions to be written: openai/openai_humaneval, 164 problems, all for testing.

A completion is run together with the problem's tests, in the sandbox of `nanochat.execution`.
"""

import re
from typing import Any

from nanochat.execution import execute_code, require_sandbox

from tasks.common import Conversation, Task, choose_rows

_FENCED = re.compile(r"```(?:python)?[ \t]*\n(.*?)\n?```", re.DOTALL)

BUILTIN = [
    {
        "prompt": 'def double(x):\n    """Twice a number."""\n',
        "canonical_solution": "    return 2 * x\n",
        "entry_point": "double",
        "test": "def check(f):\n    assert f(0) == 0\n    assert f(-3) == -6\n",
    },
    {
        "prompt": 'def last(items):\n    """The last item of a list, None if it has none."""\n',
        "canonical_solution": "    return items[-1] if items else None\n",
        "entry_point": "last",
        "test": "def check(f):\n    assert f([1, 2]) == 2\n    assert f([]) is None\n",
    },
    {
        "prompt": "import math\n\n\ndef hypotenuse(a, b):\n"
        '    """The long side of a right triangle with the short sides a and b."""\n',
        "canonical_solution": "    return math.sqrt(a * a + b * b)\n",
        "entry_point": "hypotenuse",
        "test": "def check(f):\n    assert abs(f(3, 4) - 5) < 1e-9\n    assert f(0, 2) == 2\n",
    },
    {
        "prompt": 'def vowels(word):\n    """How many of the letters of a word are a, e, i, o or u."""\n',
        "canonical_solution": "    return sum(letter in 'aeiou' for letter in word)\n",
        "entry_point": "vowels",
        "test": "def check(f):\n    assert f('heron') == 2\n    assert f('') == 0\n",
    },
    {
        "prompt": 'def running_sum(numbers):\n    """The sums of the first 1, 2, 3, ... numbers."""\n',
        "canonical_solution": "    sums = []\n    for number in numbers:\n"
        "        sums.append(number + (sums[-1] if sums else 0))\n    return sums\n",
        "entry_point": "running_sum",
        "test": "def check(f):\n    assert f([1, 2, 3]) == [1, 3, 6]\n    assert f([]) == []\n",
    },
]
"""Our own problems, in the form of the data set's rows."""


def imports_of(prompt: str) -> str:
    """The import lines at the top of a prompt, up to the first line of anything else."""
    kept = []
    for line in prompt.split("\n"):
        text = line.strip()
        if text.startswith(("import ", "from ")):
            kept.append(text)
        elif text and not text.startswith("#"):
            break
    return "\n".join(kept)


def code_of(completion: str) -> str:
    """The first fenced block of a completion; all of it if there is none."""
    found = _FENCED.search(completion)
    return (found.group(1) if found else completion).strip()


class HumanEval(Task):
    """Problems whose answers are run. `source` is `hub` or `builtin`.

    Raises:
        Refused: This machine has no sandbox.
    """

    eval_type = "generative"

    def __init__(self, source: str = "hub", **view: Any):
        super().__init__(**view)
        require_sandbox()
        self.rows = choose_rows(source, BUILTIN, "openai/openai_humaneval", None, "test")

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        row = self.rows[index]
        return {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": f"{row['prompt']}\n{row['canonical_solution']}"},
            ],
            "entry_point": row["entry_point"],
            "test": row["test"],
        }

    def evaluate(self, problem: Conversation, completion: str) -> bool:
        """Whether the tests of the problem pass within five seconds."""
        program = "\n\n".join(
            (
                imports_of(problem["messages"][0]["content"]),
                code_of(completion),
                problem["test"],
                f"check({problem['entry_point']})",
            )
        )
        return execute_code(program).success
