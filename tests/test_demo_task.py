"""The demo task says what it promises: right labels, fair splits, no short cuts, and a model that fits."""

import hashlib
import json
import re
from itertools import islice, product
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from budget_search.data import demo_task as demo
from budget_search.data.tasks import DEMO_DIGEST
from budget_search.models.pretrained import MODEL_DIR

Fact = tuple[str, ...]
EXAMPLES_SHA256 = "879ded859bcd48e9e7a38fa51eb923a6f211a5198539cddb98c5be1ee7d71548"

# How sentences are read, written down apart from how they are made: capital letters stand for one word each.
READINGS = {
    "A gave the X to B": "gave A X B",
    "A gave B the X": "gave A X B",
    "B got the X from A": "gave A X B",
    "B was given the X by A": "gave A X B",
    "A sold the X to B": "sold A X B",
    "A sold B the X": "sold A X B",
    "B bought the X from A": "sold A X B",
    "A lent the X to B": "lent A X B",
    "A lent B the X": "lent A X B",
    "B borrowed the X from A": "lent A X B",
    "A sent the X to B": "sent A X B",
    "A sent B the X": "sent A X B",
    "B received the X from A": "sent A X B",
    "A was V by B": "V B A",
    "it was A who V B": "V A B",
    "A V before B": "before V A B",
    "A V after B": "before V B A",
    "A V later than B": "before V B A",
    "A woke up before B": "before woke A B",
    "A woke up after B": "before woke B A",
    "A woke up later than B": "before woke B A",
    "the X is to the left of the Y": "left X Y",
    "the X is to the right of the Y": "left Y X",
    "the X is in front of the Y": "front X Y",
    "the X is behind the Y": "front Y X",
    "the X is above the Y": "above X Y",
    "the X is below the Y": "above Y X",
    "A is not as P as B": "P B A",
    "A put the X in the P and later moved it to the Q": "first X P; now X Q",
    "A took the X out of the P and put it in the Q": "first X P; now X Q",
    "the X is in the Q, but at first it was in the P": "first X P; now X Q",
    "before A moved it to the Q, the X was in the P": "first X P; now X Q",
    "A moved the X to the Q after it had been in the P": "first X P; now X Q",
    "the X is in the P now": "now X P",
    "the X was in the P at first": "first X P",
    "A found the X in the P": "was X P",
    "A left the X in the P": "was X P",
    "the X was in the P": "was X P",
    "the X is in the P": "in X P",
    "A is in the P": "in A P",
    "A is carrying the X": "in X A",
    "A likes X but not Y": "likes A X; not likes A Y",
    "A does not like Y but likes X": "likes A X; not likes A Y",
    "A likes X and hates Y": "likes A X; not likes A Y",
    "A does not like Y": "not likes A Y",
    "A likes X": "likes A X",
    "A can V, but B cannot": "can A V; not can B V",
    "A cannot V, but B can": "can B V; not can A V",
    "unlike A, B can V": "can B V; not can A V",
    "A cannot V": "not can A V",
    "A can V": "can A V",
    "A has the X now": "has A X",
    "A has the X": "has A X",
}
COMPARATIVES = {
    "tall": "taller shorter",
    "old": "older younger",
    "fast": "faster slower",
    "strong": "stronger weaker",
    "rich": "richer poorer",
    "heavy": "heavier lighter",
    "big": "bigger smaller",
    "clean": "cleaner dirtier",
}
for plain, both in COMPARATIVES.items():
    for first, second in (("A", "B"), ("the A", "the B")):
        more, less = both.split()
        READINGS[f"{first} is {more} than {second}"] = f"{plain} A B"
        READINGS[f"{first} is {less} than {second}"] = f"{plain} B A"
READINGS |= {"the A is newer than the B": "young A B", "the A is older than the B": "young B A", "A V B": "V A B"}
TRANSITIVE = {*COMPARATIVES, "young", "before", "left", "front", "above", "in"}
PATTERNS = {re.compile(re.sub(r"\b([A-Z])\b", r"(?P<\1>\\w+)", text)): facts for text, facts in READINGS.items()}


def read(clause: str) -> set[Fact]:
    """The facts a clause states, by the first reading that fits; single letters are filled in."""
    for pattern, facts in PATTERNS.items():
        if found := pattern.fullmatch(clause):
            words = found.groupdict()
            return {tuple(words.get(word, word) for word in fact.split()) for fact in facts.split("; ")}
    raise AssertionError(f"nobody reads {clause!r}")


def clauses(text: str) -> list[str]:
    """The clauses of a text, in lower case."""
    text = re.sub(r" the (\w+) to (\w+), who (\w+) it to ", r" the \1 to \2. \2 \3 the \1 to ", text.lower())
    return re.split(r"\. |, and |, while ", text.removesuffix("."))


def understood(text: str) -> set[Fact]:
    """Everything that follows from a text: what it says, and what can be concluded from that."""
    parts = clauses(text)
    if choice := re.fullmatch(r"either (\w+) or (\w+) has the (\w+)", parts[0]):
        loser = parts[1].split()[0]
        return {("has", next(name for name in choice.group(1, 2) if name != loser), choice[3])}
    if choice := re.fullmatch(r"the (\w+) is in the (\w+) or in the (\w+)", parts[0]):
        return {("in", choice[1], next(place for place in choice.group(2, 3) if place != parts[1].split()[-1]))}
    facts = set().union(*map(read, parts))
    transfers = [fact for part in parts for fact in read(part) if fact[0] in ("gave", "sold", "lent", "sent")]
    if len(transfers) == 2 and transfers[0][2] == transfers[1][2]:
        facts.add(("has", transfers[1][3], transfers[1][2]))
    return closure(facts)


def closure(facts: set[Fact]) -> set[Fact]:
    """Add what follows in two steps or more: order, position and being inside are transitive."""
    while True:
        steps = [fact for fact in facts if fact[0] in TRANSITIVE]
        found = {(*one[:-1], two[-1]) for one, two in product(steps, steps) if (*one[:-2], one[-1]) == two[:-1]}
        if found <= facts:
            return facts
        facts |= found


def follows(premise: str, hypothesis: str) -> bool:
    """Whether all that the hypothesis states is among what follows from the premise."""
    return all(read(clause) <= understood(premise) for clause in clauses(hypothesis))


@pytest.fixture(scope="module")
def train() -> list[dict]:
    return demo.examples("train")


@pytest.fixture(scope="module")
def validation() -> list[dict]:
    return demo.examples("validation")


def test_the_reasoner_itself():
    assert follows("Anna is taller than Paul. Ruth is shorter than Paul.", "Ruth is not as tall as Anna.")
    assert not follows("Anna is taller than Paul. Ruth is shorter than Paul.", "Ruth is taller than Anna.")
    assert follows("Anna gave the lamp to Paul, who sold it to Ruth.", "Ruth has the lamp now.")
    assert not follows("Anna gave the lamp to Paul, who sold it to Ruth.", "Paul has the lamp now.")


def test_every_label_is_right(train, validation):
    wrong = [row for row in train[:3000] + validation if follows(row["premise"], row["hypothesis"]) != row["label"]]
    assert not wrong


def test_the_splits_are_deterministic_and_prefixes_of_themselves(train):
    assert demo.examples("train", 100) == train[:100] == demo.examples("train", 100)


def test_sizes_and_balance(train, validation):
    assert (len(train), len(validation)) == (8000, 2000)
    for rows in (train, validation, train[:500]):
        assert sum(row["label"] for row in rows) * 2 == len(rows)
    assert set(train[0]) == {"premise", "hypothesis", "label"}


def test_no_text_has_two_uses(train, validation):
    texts = [row["premise"].lower() for row in train + validation]
    assert len(set(texts)) == len(texts)
    assert not set(texts) & {text.lower() for text, _ in islice(demo.passages(seed=0), 20_000)}


def test_pre_training_sees_true_statements_only():
    for text, statements in islice(demo.passages(seed=5), 1000):
        assert follows(text, statements), (text, statements)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="no 'test'"):
        demo.examples("test")


def test_counting_words_does_not_solve_it(train, validation):
    def features(row: dict) -> list[str]:
        premise, hypothesis = (re.findall(r"\w+", row[part].lower()) for part in ("premise", "hypothesis"))
        pairs = [f"{one}|{other}" for one, other in product(set(premise), set(hypothesis))]
        return [*premise, *(f"h:{word}" for word in hypothesis), *pairs]

    counts = CountVectorizer(analyzer=features, min_df=5)
    linear = LogisticRegression(C=0.1, solver="liblinear")
    linear.fit(counts.fit_transform(train[:3000]), [row["label"] for row in train[:3000]])
    score = linear.score(counts.transform(validation), [row["label"] for row in validation])
    assert score < 0.65, f"{score:.1%}"


def test_the_model_knows_every_word(validation):
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    encoded = tokenizer([row["premise"] for row in validation], [row["hypothesis"] for row in validation])
    assert not any(tokenizer.unk_token_id in ids for ids in encoded["input_ids"])
    assert max(map(len, encoded["input_ids"])) <= 64


def test_the_packaged_model_is_a_small_stock_bert_in_half_precision():
    assert json.loads((MODEL_DIR / "config.json").read_text())["num_hidden_layers"] == 12
    assert sum(file.stat().st_size for file in Path(MODEL_DIR).iterdir()) <= 8_000_000
    with safe_open(MODEL_DIR / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118
    model = AutoModelForSequenceClassification.from_pretrained(MODEL_DIR, dtype=torch.float32)
    assert len(model.bert.encoder.layer) == 12


def test_other_examples_have_another_digest() -> None:
    """Studies are named by DEMO_DIGEST. If the generator produces other examples, change it and both values here."""
    generated = json.dumps([demo.examples(split) for split in ("train", "validation")], sort_keys=True)
    assert (hashlib.sha256(generated.encode()).hexdigest(), DEMO_DIGEST[:8]) == (EXAMPLES_SHA256, "a20ca37d")
