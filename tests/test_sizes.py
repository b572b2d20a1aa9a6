"""What a model of some shape comes to, and how a text is spelled."""

import pytest
from nanochat.footprint import GIB
from tuning import checkpoint

from fractal_core import Refused, sizes, spelling
from fractal_core.sizes import Wish


def test_a_size_is_that_of_the_command():
    """Depth 20 as `scripts.model_size` reckons it; tokens and time follow by hand."""
    from scripts import model_size

    command = model_size.main(model_size.Config())
    found = sizes.size(Wish())
    assert found.parameters == command["parts"]
    assert found.operations == command["flops_per_token"]
    assert found.tokens == 20 * command["parameters"]
    assert found.largest_batch == command["largest_batch"]
    assert found.gib * GIB == pytest.approx(command["memory"][32][1], rel=1e-6)
    by_hand = found.operations * found.tokens / (8 * 989e12 * 0.4)
    assert found.seconds == pytest.approx(by_hand)
    assert f"{found.total:,}" in sizes.words(Wish(), found)
    assert "not even one" in sizes.words(Wish(), sizes.size(Wish(card=1.0)))


def test_every_depth_and_aspect_of_the_sliders_has_a_shape():
    """Widths are rounded up to whole heads; those of nanochat stay as they are."""
    assert [Wish(depth=d).width for d in (2, 12, 20)] == [128, 768, 1280]
    for depth in range(2, 50, 8):
        for aspect in range(32, 129, 16):
            assert sizes.size(Wish(depth, aspect, 512, 128)).width >= depth * aspect
    with pytest.raises(Refused, match="utilisation"):
        sizes.size(Wish(utilisation=0.0))


def test_bars_have_their_parts_in_order():
    """And a line where the card ends."""
    chart = sizes.bars({"weights": 3.0, "logits": 1.0}, "GiB", 80.0).to_dict()
    assert chart["layer"][0]["encoding"]["y"]["sort"] == ["weights", "logits"]
    assert len(chart["layer"]) == 2


def test_tokens_are_shown_with_their_ids(tmp_path, monkeypatch):
    """Half a character as its bytes; nothing in a text is HTML."""
    monkeypatch.setenv("FRACTAL_STORAGE", str(tmp_path / "storage"))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    checkpoint(tmp_path / "runs" / "lm" / "tokenizer")
    found = spelling.found(tmp_path / "runs")
    assert next(iter(found)) == "of lm"
    assert list(found.values())[-1] == spelling.OWN
    assert not (tmp_path / "base").exists()
    for folder in found.values():
        known = spelling.tokenizer(folder)
        text = "<b>bread</b> 빛"
        shown = spelling.coloured(known, text)
        ids = known.encode(text)
        assert shown.count("data-id=") == len(ids)
        assert all(f"data-id='{id}'" in shown for id in ids)
        assert "<b>" not in shown
        assert "eb" in shown
        assert f"{len(ids):,} tokens" in spelling.summary(known, text)
        assert "nothing to pack" in spelling.summary(known, "")
        assert len(spelling.specials(known)) == 9
        assert len(spelling.packing(known).data) == 5
    (tmp_path / "runs" / "lm" / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(Refused):
        spelling.tokenizer(found["of lm"])
