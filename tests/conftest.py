"""Fixtures of several test files: tiny models, tasks and a finished study, created once per session."""

import os
from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def xlnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_xlnet(tmp_path_factory.mktemp("models") / "tiny-xlnet")


@pytest.fixture(scope="session")
def sst2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train and validation, in the columns of SST-2."""
    folder = tmp_path_factory.mktemp("tasks") / "sst2"
    tiny.write_parquet(folder / "train.parquet", tiny.reviews(420, seed=1))
    tiny.write_tsv(folder / "validation.tsv", tiny.reviews(120, seed=2))
    return folder


@pytest.fixture(scope="session")
def qqp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks") / "qqp"
    tiny.write_parquet(folder / "train.parquet", tiny.questions(420, seed=3))
    tiny.write_parquet(folder / "validation.parquet", tiny.questions(120, seed=4))
    return folder


@pytest.fixture(scope="session")
def sst2_study(tmp_path_factory: pytest.TempPathFactory, bert: Path, sst2: Path) -> Path:
    """A finished study; ``sst2`` and ``bert`` are two folders above it."""
    folder = tiny.context(tmp_path_factory.mktemp("finished"), sst2=sst2, bert=bert)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert tiny.command(*tiny.search_options("sst2"), "--delta", "0.05", "0.06", "--quiet") == 0
    finally:
        os.chdir(before)
    return tiny.only_study(folder / "studies")
