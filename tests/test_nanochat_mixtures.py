"""What the stages learn from by default: tasks, sizes and order, with rows that stand in."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

import pytest
from nanochat.common import Refused
from scripts import chat_sft, mid_train
from tasks import arc, common, gsm8k, mmlu, smoltalk
from tasks.identity import Config, main
from tasks.smoltalk import SmolTalk

SIZES = {
    ("HuggingFaceTB/smol-smoltalk", None, "train"): (460_341, smoltalk.BUILTIN),
    ("HuggingFaceTB/smol-smoltalk", None, "test"): (24_229, smoltalk.BUILTIN),
    ("cais/mmlu", "auxiliary_train", "train"): (99_842, mmlu.BUILTIN),
    ("cais/mmlu", "all", "test"): (14_042, mmlu.BUILTIN),
    ("openai/gsm8k", "main", "train"): (7_473, gsm8k.BUILTIN),
    ("openai/gsm8k", "main", "test"): (1_319, gsm8k.BUILTIN),
    ("allenai/ai2_arc", "ARC-Easy", "train"): (2_251, arc.BUILTIN),
    ("allenai/ai2_arc", "ARC-Easy", "test"): (2_376, arc.BUILTIN),
    ("allenai/ai2_arc", "ARC-Challenge", "train"): (1_119, arc.BUILTIN),
}
"""As many rows as the data sets have, which are our own again and again."""


FIRST = [(0, 164777), (5, 44243), (5, 72171), (0, 139373), (0, 238077), (0, 47467)]
MID, MID_VALIDATION, SFT = "de9868b949052c0e", "896f96d6130c7d7d", "67bf4eda70c52d32"
"""Task and row of the first, and digests of all, made once by this code's `Random(42)`."""


class Repeated(Sequence):
    def __init__(self, count: int, rows: Sequence):
        self.count, self.rows = count, rows

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index):
        return self.rows[index % len(self.rows)]


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A base folder with words and conversations about the model, and data sets of full size."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    monkeypatch.setattr(common, "load_rows", lambda *where: Repeated(*SIZES[where]))
    (tmp_path / "words_alpha.txt").write_text("alpha beta gamma delta epsilon zeta eta theta")
    main(Config(size=1000))


def digest(mixture) -> str:
    """Of the order of all rows."""
    return hashlib.sha256(json.dumps(mixture.index_map).encode()).hexdigest()[:16]


def assert_spoken(mixture, count: int) -> None:
    """The first rows are conversations, and each is the one that the order says."""
    for place in range(count):
        task, row = mixture.index_map[place]
        assert mixture[place] == mixture.tasks[task][row]
        roles = [message["role"] for message in mixture[place]["messages"]]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)


def test_mid_training_learns_from_seven_parts(base):
    """SmolTalk, MMLU, GSM8K, twice who the model is, spelling and counting: 849,656 rows."""
    train, validation = mid_train.mixtures("")
    sizes = [460_341, 99_842, 7_473, 1000, 1000, 200_000, 80_000]
    assert [len(task) for task in train.tasks] == sizes
    assert len(train) == 849_656
    assert Counter(task for task, _ in train.index_map) == dict(enumerate(sizes))
    assert train.index_map[:6] == FIRST
    assert digest(train) == MID
    assert_spoken(train, 300)
    assert [len(task) for task in validation.tasks] == [24_229, 5_200, 420]
    assert len(validation) == 29_849
    assert digest(validation) == MID_VALIDATION


def test_fine_tuning_learns_from_seven_parts(base):
    """Both ARC sets, GSM8K, ten thousand of SmolTalk, who the model is, and spelling: 22,443 rows."""
    train, validation, _ = chat_sft.mixtures("")
    assert [len(task) for task in train.tasks] == [2_251, 1_119, 7_473, 10_000, 1000, 300, 300]
    assert len(train) == 22_443
    assert digest(train) == SFT
    assert_spoken(train, 300)
    assert len(validation) == 24_229
    assert chat_sft.Config().target_examples_per_step * 701 <= len(train) < 32 * 702


def test_who_the_model_is_may_be_missing(base, tmp_path, capsys):
    """Then those rows are, and a line says so."""
    (tmp_path / "identity_conversations.jsonl").unlink()
    assert len(mid_train.mixtures("")[0]) == 847_656
    assert "identity_conversations.jsonl is not there" in capsys.readouterr().out


def test_conversations_stand_in_for_smoltalk():
    """Of one to three exchanges, some after a system message; another source is refused."""
    rows = [row["messages"] for row in SmolTalk("train", source="builtin")]
    systems = [row[0]["role"] == "system" for row in rows]
    assert 0 < sum(systems) < len(rows)
    assert {(len(row) - system) // 2 for row, system in zip(rows, systems, strict=True)} == {
        1,
        2,
        3,
    }
    assert_spoken(common.TaskMixture([SmolTalk("test", source="builtin")]), len(rows))
    with pytest.raises(Refused, match="hub or builtin"):
        SmolTalk("train", source="memory")
    with pytest.raises(Refused, match="choose among train, test"):
        SmolTalk("validation", source="builtin")
