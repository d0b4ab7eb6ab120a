"""The definition of a kind of task: a record of functions for reading, training, scoring and exporting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

IGNORED = -100
"""The label of a token that has none, as in the losses of torch and transformers."""

LONGEST_NAME = 80
"""The most characters in the name of a prediction that combines several labels."""

LabelsBySplit = dict[str, np.ndarray]
Names = tuple[str, ...]


@dataclass(frozen=True)
class LabelCells:
    """The cells of the label columns as read, and the settings that determine how they are parsed.

    ``cells`` holds by split one tuple per example, with a cell per column. ``texts`` holds by split the text columns.
    ``names`` are the class names in the data's metadata, empty if there are none; ``metric_named`` is true if the user
    chose the metric.
    """

    columns: Names
    cells: Mapping[str, Sequence[tuple[Any, ...]]]
    texts: Mapping[str, Sequence[Sequence[str]]]
    names: Names
    metrics: Names
    metric_named: bool

    @property
    def column(self) -> str:
        """The label columns as ``--label-column`` names them."""
        return ",".join(self.columns)

    @property
    def single(self) -> dict[str, list[Any]]:
        """The cells of the only label column by split."""
        return {split: [cell for (cell,) in rows] for split, rows in self.cells.items()}


@dataclass(frozen=True)
class Windows:
    """Long texts, each split into several inputs, and the accepted answers in them.

    ``each`` int64 (examples,) is the number of consecutive inputs of an example. ``places`` int32 (tokens, 2) says
    where each token lies in its text, in characters, the end exclusive. ``texts`` are by example the text and the
    accepted answers.
    """

    each: np.ndarray
    places: np.ndarray
    texts: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Truth:
    """The targets that outputs are scored against: ``labels`` has one row for each row of the outputs.

    ``sizes`` int64 (inputs,) are the rows of each input: one, or one per labelled token. An example is one input, or as
    many as ``windows`` says, whose places are those of the rows. ``names`` follow the label numbers and are empty for
    scores.
    """

    labels: np.ndarray
    sizes: np.ndarray
    names: Names
    windows: Windows | None = None


@dataclass(frozen=True)
class Answers:
    """The predictions of models as comparable numbers: ``labels`` and each of ``models`` are (examples,).

    ``names`` name the numbers; empty if they are scores.
    """

    labels: np.ndarray
    models: Sequence[np.ndarray]
    names: Names


@dataclass(frozen=True)
class Encoded:
    """Some encoded examples: ``batch`` comes from the tokenizer, ``labels`` is an array to be concatenated with others.

    With ``windows`` the batch has several inputs per example.
    """

    batch: Mapping[str, Sequence[Sequence[int]]]
    labels: np.ndarray
    windows: Windows | None = None


def tokenise_texts(
    tokenizer: Any, columns: Sequence[Sequence[str]], labels: np.ndarray, options: Mapping[str, Any]
) -> Encoded:
    """Encode one text or a pair per example; the labels stay as they are."""
    return Encoded(tokenizer(*columns, **options), labels)


def text_as_it_is(cell: Any) -> Any:
    """The cell itself."""
    return cell


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    ``auto_model`` is the class of transformers that loads its models, ``problem_type`` the config's field,
    ``pipeline`` the name of the pipeline that runs an export and ``pipeline_options`` its further arguments, as code.
    Where transformers has no such pipeline, ``usage`` is code that runs an export called ``{name}``.

    ``read_text`` turns a cell of a text column into a text, ``read_labels`` label columns into one label per example
    with the names; it raises UsageError. ``tokenise`` encodes some examples; ``of_words``: word by word. ``per_token``:
    labels and outputs belong to tokens, not to examples. ``strata`` gets the labels of train and the number of names,
    and returns a function from labels to the strata (examples,) that carved splits keep the shares of, and how many
    strata there are (0: scores).

    The further functions score outputs, float32 (rows, classes or 1), against a ``Truth``. ``measure`` gives metrics by
    name, ``contributions`` values per example whose mean is the score (both in points), ``constant_outputs`` the best
    answer that ignores the input, ``mean_loss`` the loss, and ``collapsed`` says whether the outputs ignore the input.
    ``label_shares`` gives the frequency of every label, ``answers`` what models say of each example.
    ``probe_targets`` turns labels into targets (rows, classes or 1) of a linear probe whose predictions can be scored
    like outputs. ``refused`` holds by option why it does not work for this kind.
    """

    auto_model: str
    problem_type: str | None
    pipeline: str
    read_labels: Callable[[LabelCells], tuple[LabelsBySplit, Names]]
    strata: Callable[[np.ndarray, int], tuple[Callable[[np.ndarray], np.ndarray], int]]
    measure: Callable[[Sequence[str], np.ndarray, Truth], dict[str, float]]
    contributions: Callable[[str, np.ndarray, Truth], np.ndarray]
    constant_outputs: Callable[[str, Truth], np.ndarray]
    mean_loss: Callable[[np.ndarray, Truth], float]
    collapsed: Callable[[np.ndarray, Truth], bool]
    label_shares: Callable[[Truth], dict[str, float]]
    answers: Callable[[Sequence[np.ndarray], Truth], Answers]
    probe_targets: Callable[[np.ndarray, int], np.ndarray]
    pipeline_options: str = ""
    usage: str = ""
    read_text: Callable[[Any], Any] = text_as_it_is
    tokenise: Callable[[Any, Sequence[Sequence[str]], np.ndarray, Mapping[str, Any]], Encoded] = tokenise_texts
    of_words: bool = False
    per_token: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
