import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
    XLNetTokenizer,
)

from budget_search.core.errors import StudyError, UsageError
from budget_search.data.loading import Examples
from budget_search.data.splits import SplitTask
from budget_search.data.tokenization import EncodedTask, encode, max_input_length, takes_segments

WORDS = ["good", "bad", "film", "a", "very", "long", "story", "short"]


@pytest.fixture
def bert() -> BertTokenizer:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={name: number for number, name in enumerate(names)}, model_max_length=512)


@pytest.fixture
def xlnet() -> XLNetTokenizer:
    marks = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"]
    return XLNetTokenizer(vocab=[(name, 0.0) for name in marks] + [("▁" + word, -1.0) for word in WORDS])


def task(*columns: list[str], labels: list[int] | None = None, **splits: Examples) -> SplitTask:
    examples = Examples(columns, np.array(labels or [0, 1] * (len(columns[0]) // 2)))
    four = dict.fromkeys(("train", "selection", "certification", "held_out"), examples)
    return SplitTask({**four, **splits}, ("no", "yes"), "accuracy", ("f1",), ("a remark.",))


def example(encoded: EncodedTask, row: int, split: str = "train") -> tuple[list[int], list[int]]:
    """Tokens and segments of one example."""
    found = encoded.splits[split]
    place = slice(found.offsets[row], found.offsets[row + 1])
    assert found.segments is not None
    return found.tokens[place].tolist(), found.segments[place].tolist()


def test_examples_lie_end_to_end_and_come_back_as_the_tokenizer_makes_them(bert: BertTokenizer) -> None:
    texts = ["a good film", "bad", "a very long story", "short story"]
    encoded = encode(task(texts), bert, max_length=16, takes_segments=True)
    split = encoded.splits["train"]
    assert [example(encoded, row)[0] for row in range(4)] == [bert(text)["input_ids"] for text in texts]
    assert (split.tokens.dtype, split.offsets.dtype, split.labels.dtype) == (np.int32, np.int64, np.int64)
    assert split.examples == 4
    assert split.lengths.tolist() == [5, 3, 6, 4]


def test_pairs_have_real_segments(bert: BertTokenizer) -> None:
    encoded = encode(task(["a good film", "bad"], ["short", "a story"]), bert, max_length=16, takes_segments=True)
    tokens, segments = example(encoded, 0)
    assert bert.decode(tokens) == "[CLS] a good film [SEP] short [SEP]"
    assert segments == [0, 0, 0, 0, 0, 1, 1]
    assert (encoded.pad_token, encoded.pad_segment, encoded.pad_left) == (0, 0, False)


def test_xlnet_keeps_its_segments_and_pads_left(xlnet: XLNetTokenizer) -> None:
    encoded = encode(task(["a good film", "bad"], ["short", "a story"]), xlnet, max_length=16, takes_segments=True)
    tokens, segments = example(encoded, 0)
    assert xlnet.convert_ids_to_tokens(tokens) == ["▁a", "▁good", "▁film", "<sep>", "▁short", "<sep>", "<cls>"]
    assert segments == [0, 0, 0, 0, 1, 1, 2]
    assert (encoded.pad_token, encoded.pad_segment, encoded.pad_left) == (5, 3, True)


def test_the_longer_text_of_a_pair_is_cut_first(bert: BertTokenizer) -> None:
    first, second = ["a very long long story", "bad film"], ["short film", "a very long long story"]
    encoded = encode(task(first, second), bert, max_length=8, takes_segments=True)
    assert bert.decode(example(encoded, 0)[0]) == "[CLS] a very long [SEP] short film [SEP]"
    assert bert.decode(example(encoded, 1)[0]) == "[CLS] bad film [SEP] a very long [SEP]"
    assert any("fill the 8 tokens" in note for note in encoded.notes)


def test_without_segments_none_are_kept(bert: BertTokenizer) -> None:
    assert encode(task(["a", "bad"]), bert, max_length=8, takes_segments=False).splits["train"].segments is None


def test_no_room_for_the_text_is_refused(bert: BertTokenizer) -> None:
    with pytest.raises(UsageError, match="--max-length 4 leaves no room"):
        encode(task(["a", "bad"], ["a", "bad"]), bert, max_length=4, takes_segments=True)


def gpt2_like(**marks: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*WORDS, "<end>"])}, "a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **marks)


def test_a_tokenizer_without_padding_pads_with_its_end_token() -> None:
    encoded = encode(task(["a good", "bad"]), gpt2_like(eos_token="<end>"), max_length=8, takes_segments=False)
    assert encoded.pad_token == len(WORDS)
    with pytest.raises(UsageError, match="neither a padding token"):
        encode(task(["a good", "bad"]), gpt2_like(), max_length=8, takes_segments=False)


@pytest.mark.parametrize("segments", [True, False])
def test_a_file_gives_back_what_was_saved(bert: BertTokenizer, tmp_path: Path, segments: bool) -> None:
    further = Examples((["film", "good film", "bad"],), np.array([1, 1, 0]))
    saved = encode(task(["a good film", "bad"], held_out_other=further), bert, max_length=8, takes_segments=segments)
    saved.save(tmp_path / "folder" / "examples.npz")
    loaded = EncodedTask.load(tmp_path / "folder" / "examples.npz")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["examples.npz"]
    assert list(loaded.splits) == list(saved.splits)
    for name, split in saved.splits.items():
        for field in ("tokens", "segments", "offsets", "labels"):
            before, after = getattr(split, field), getattr(loaded.splits[name], field)
            assert (before is None and after is None) or (before.dtype == after.dtype and (before == after).all())
    rest = [field for field in vars(saved) if field != "splits"]
    assert {field: getattr(loaded, field) for field in rest} == {field: getattr(saved, field) for field in rest}
    assert loaded.splits["selection"] is loaded.splits["held_out"]  # the same examples are kept once


def test_a_broken_file_is_refused_and_an_old_one_survives_a_failed_write(
    bert: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "examples.npz"
    path.write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(StudyError, match=r"examples\.npz"):
        EncodedTask.load(path)
    with pytest.raises(StudyError, match="missing or damaged"):
        EncodedTask.load(tmp_path / "missing.npz")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(StudyError, match="no space"):
        encode(task(["a", "bad"]), bert, max_length=8, takes_segments=False).save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["examples.npz"]
    assert path.read_bytes().startswith(b"PK")


def test_label_shares(bert: BertTokenizer) -> None:
    encoded = encode(task(["a", "bad", "good", "film"], labels=[0, 1, 1, 1]), bert, max_length=8, takes_segments=False)
    assert encoded.label_shares("train") == {"no": 0.25, "yes": 0.75}


def test_segments_are_taken_where_they_mean_something() -> None:
    assert takes_segments(BertConfig(), BertForSequenceClassification.forward)
    assert takes_segments(XLNetConfig(), XLNetForSequenceClassification.forward)
    one_kind = RobertaConfig(type_vocab_size=1)
    assert not takes_segments(one_kind, RobertaForSequenceClassification.forward)
    assert not takes_segments(GPT2Config(), GPT2ForSequenceClassification.forward)  # accepted, but not segments
    assert "token_type_ids" in inspect.signature(GPT2ForSequenceClassification.forward).parameters


def test_the_longest_input_is_what_positions_and_tokenizer_allow() -> None:
    unlimited = SimpleNamespace(model_max_length=10**30)
    assert max_input_length(BertConfig(max_position_embeddings=128), SimpleNamespace(model_max_length=512)) == 128
    assert max_input_length(BertConfig(), SimpleNamespace(model_max_length=64)) == 64
    assert max_input_length(RobertaConfig(max_position_embeddings=514, pad_token_id=1), unlimited) == 512
    assert max_input_length(XLNetConfig(), unlimited) is None
