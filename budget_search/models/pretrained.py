"""The pre-trained model everything starts from: where it is, what identifies it, and a fresh head for a task."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budget_search.core.errors import UnsupportedModelError, UsageError
from budget_search.core.paths import expand_path
from budget_search.storage.digests import joint_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_DIR = Path(__file__).parent / "demo_model"
"""The embedded model of the demo."""
# LayerSet reads numbers of four digits.
MOST_LAYERS = 9_999
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
# Weights of other frameworks and duplicates in other precisions stay on the hub.
_DOWNLOADED = ("*.json", "*.txt", "*.model", "*.py")
# Not asked of the cache: without it a snapshot is complete.
_CARD = "README.md"
_LICENCE_FIELDS = ("license", "license_name", "license_link")
# Folder names that say nothing about the model in them.
_UNTELLING = re.compile(r"model|checkpoint.*|output.*|final|best|snapshots?|[0-9a-f]{40}|[.]*", re.IGNORECASE)


@dataclass(frozen=True)
class PretrainedSource:
    """A pre-trained model found: its name for people, its folder, and what identifies its content."""

    name: str
    folder: Path
    digest: str


def resolve_model(model: str, *, offline: bool = False, option: str = "--model") -> PretrainedSource:
    """Find a model by ``demo``, local folder or hub id, downloading it when needed; imports no torch.

    ``option`` is the one that named it. Raises UsageError when there is no such model, or a folder holds no weights.
    """
    if model == "demo":
        return PretrainedSource("demo-bert", MODEL_DIR, _folder_digest(MODEL_DIR))
    path = expand_path(model)
    if path.is_dir():
        _require_files(path, model, option)
        return PretrainedSource(_telling_name(path), path.resolve(), _folder_digest(path))
    if path.exists():
        raise UsageError(f"{option} {model} is a file; give the folder that holds config.json and the weights")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model, flags=re.ASCII):
        raise UsageError(
            f"{option} {model} is neither a folder here nor a hub id such as bert-base-uncased or org/name"
        )
    folder = _snapshot(model, offline, option)
    _require_files(folder, model, option)
    return PretrainedSource(model, folder, folder.name)


def _snapshot(model: str, offline: bool, option: str) -> Path:
    """The cached snapshot if there is one, so that re-running a command never changes the model; else from the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    for weights in _WEIGHTS:
        # One after the other: a snapshot counts as complete when it holds all that was asked for.
        with contextlib.suppress(LocalEntryNotFoundError, FileNotFoundError):
            cached = Path(snapshot_download(model, local_files_only=True, allow_patterns=[*_DOWNLOADED, weights]))
            if any(cached.glob(weights)):
                return cached
    if offline:
        raise UsageError(
            f"{option} {model} is not in the local cache and --offline forbids the network; "
            "run once without --offline, or give a folder"
        )
    try:
        folder = Path(snapshot_download(model, allow_patterns=[*_DOWNLOADED, _CARD, _WEIGHTS[0]]))
        if not _has_weights(folder):
            folder = Path(snapshot_download(model, allow_patterns=[*_DOWNLOADED, _CARD, _WEIGHTS[1]]))
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"there is no model {model!r} on the hub (nor a folder of that name here); "
            "a private one needs `hf auth login`"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise UsageError(
            f"{option} {model} is not in the local cache and the hub cannot be reached ({type(error).__name__}); "
            "copy the model's folder to this machine and give its path"
        ) from error
    return folder


def _has_weights(folder: Path) -> bool:
    return any(path.is_file() for pattern in _WEIGHTS for path in folder.glob(pattern))


def _require_files(folder: Path, model: str, option: str) -> None:
    if not (folder / "config.json").is_file():
        raise UsageError(f"{option} {model}: no config.json in that folder; give the folder save_pretrained wrote")
    if not _has_weights(folder):
        raise UsageError(
            f"{option} {model}: no weights in that folder; expected model.safetensors or pytorch_model.bin"
        )
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob(_WEIGHTS[0])):
        try:
            # Reads the table of contents, and finds a file that was cut short.
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{option} {model}: {path.name} is damaged ({error}); get the file anew") from error


def _folder_digest(folder: Path) -> str:
    files = sorted(path for pattern in ("*.json", "*.txt", "*.model", *_WEIGHTS) for path in folder.glob(pattern))
    return joint_digest({path.name: path for path in files})


def _telling_name(folder: Path) -> str:
    """The last path component that says something; else what the config calls the model."""
    for part in reversed(folder.resolve().parts[-3:]):
        if not _UNTELLING.fullmatch(part):
            return part
    config = json.loads((folder / "config.json").read_text(encoding="utf8"))
    return str(config.get("_name_or_path") or config.get("model_type") or "local-model")


def licence_of(pretrained: PretrainedSource) -> dict[str, str]:
    """What the model's own card says of its licence, in the hub's words: ``license``, and for others than the usual
    ``license_name`` and ``license_link``. Empty where it says nothing."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        told = metadata_load(pretrained.folder / _CARD) or {}
    except (OSError, ValueError, YAMLError):
        return {}
    found = {name: told[name] for name in _LICENCE_FIELDS if isinstance(told.get(name), str)}
    return found if "license" in found else {}


def quiet_transformers() -> None:
    """No loading bars and no reports of new heads: they are what this tool is about."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_tokenizer(pretrained: PretrainedSource, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, able to pad. Raises UsageError."""
    from transformers import AutoTokenizer

    quiet_transformers()
    try:
        tokenizer = AutoTokenizer.from_pretrained(pretrained.folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever goes wrong in there, the files are not what they should be
        raise UsageError(f"the tokenizer of {pretrained.name} cannot be loaded: {_first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # Transformers makes one up, without a word, where the files are missing.
        raise UsageError(f"the tokenizer of {pretrained.name} knows no words; are tokenizer.json or vocab.txt missing?")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UsageError(f"the tokenizer of {pretrained.name} has no padding token and no end token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def outline(pretrained: PretrainedSource, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model's structure without its weights. Raises UnsupportedModelError when it is no classifier's."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    try:
        config = AutoConfig.from_pretrained(pretrained.folder, trust_remote_code=trust_remote_code)
        if (depth := getattr(config, "num_hidden_layers", 0)) > MOST_LAYERS:
            raise ValueError(f"its config names {depth} layers, at most {MOST_LAYERS} are built")
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
        for path in pretrained.folder.glob(_WEIGHTS[1]):
            # Tensors and nothing else: a pickle may run anything. Found out before a study is made.
            torch.load(path, weights_only=True, map_location="meta")
    except Exception as error:  # whatever goes wrong in there, the files are not what they should be
        raise UnsupportedModelError(
            f"{pretrained.name} is no model for classifying texts: {_first_line(error)}"
        ) from error
    return model


def load_pretrained(
    folder: Path, *, name: str, label_names: Iterable[str], pad_token: int, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, frozenset[str]]:
    """The model in fp32 with a head for the task, and the names of the parameters that no pre-training fixed.

    No label names mean regression. Raises UnsupportedModelError when transformers has no classifier for it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    quiet_transformers()
    names = tuple(label_names)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        config.id2label = dict(enumerate(names)) if names else {0: "score"}
        config.label2id = {label: index for index, label in config.id2label.items()}
        config.problem_type = "single_label_classification" if names else "regression"
        _forget_memories(config)
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = pad_token
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=trust_remote_code,
        )
    except MemoryError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{name} cannot be loaded as a sequence classifier: {_first_line(error)}"
        ) from error
    missing = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    body = f"{model.base_model_prefix}."
    missing |= {key for key, _ in model.named_parameters() if not key.startswith(body)}
    return model, frozenset(missing)


def fresh_head(model: PreTrainedModel, fresh: frozenset[str], seed: int) -> None:
    """Draw the head's weights (those named in ``fresh``) anew from the seed, by the model's own initialisation."""
    import torch

    torch.manual_seed(seed)
    owners = {key.rpartition(".")[0] for key in fresh}
    with torch.no_grad():
        for name, module in model.named_modules():
            if name in owners:
                for parameter in module.parameters(recurse=False):
                    # A mark that transformers leaves on loaded weights so that they are not initialised again.
                    vars(parameter).pop("_is_hf_initialized", None)
                model._init_weights(module)


def _forget_memories(config: Any) -> None:
    """Classification reads every text on its own: no memories (XLNet's mems), no key-value cache (decoders)."""
    for name in ("use_mems_eval", "use_mems_train", "use_cache"):
        if hasattr(config, name):
            setattr(config, name, False)


def _first_line(error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return "it brings code of its own; read that, then allow it to run with --trust-remote-code"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
