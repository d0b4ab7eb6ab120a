"""Find the pre-trained model, identify its content, load it, and initialise a new head for the task."""

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

    from budget_search.data.kinds.kind import Kind

MODEL_DIR = Path(__file__).parent / "demo_model"
"""The embedded model of the demo."""
# LayerSet parses numbers of up to four digits.
MAX_LAYERS = 9_999
_INDEX = ".index.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
# Weights of other frameworks and copies in other precisions are not downloaded.
_DOWNLOADED = ("*.json", "*.txt", "*.model", "*.py")
# Optional: a cached snapshot without a card counts as complete.
_CARD = "README.md"
_LICENCE_FIELDS = ("license", "license_name", "license_link")
# Folder names that do not identify the model.
_GENERIC_NAMES = re.compile(r"model|checkpoint.*|output.*|final|best|snapshots?|[0-9a-f]{40}|[.]*", re.IGNORECASE)


@dataclass(frozen=True)
class PretrainedSource:
    """A pre-trained model on disk: its display name, its folder, and a digest or hub revision of its content."""

    name: str
    folder: Path
    digest: str


def resolve_model(model: str, *, offline: bool = False, option: str = "--model") -> PretrainedSource:
    """Find a model by ``demo``, local folder or hub id, and download it if needed. Does not import torch.

    ``option`` is the command-line option to name in errors. Raises UsageError if there is no such model or a folder has
    no weights.
    """
    if model == "demo":
        return PretrainedSource("demo-bert", MODEL_DIR, _folder_digest(MODEL_DIR))
    path = expand_path(model)
    if path.is_dir():
        _require_files(path, model, option)
        return PretrainedSource(_descriptive_name(path), path.resolve(), _folder_digest(path))
    if path.exists():
        raise UsageError(f"{option} {model} is a file; give the folder with config.json and the weights")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model, flags=re.ASCII):
        raise UsageError(
            f"{option} {model} is neither an existing folder nor a hub id such as bert-base-uncased or org/name"
        )
    folder = _snapshot(model, offline, option)
    _require_files(folder, model, option)
    return PretrainedSource(model, folder, folder.name)


def _snapshot(model: str, offline: bool, option: str) -> Path:
    """The cached snapshot if there is one, so that repeating a command does not change the model; else a download."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    for weights in _WEIGHTS:
        # One format at a time, because snapshot_download requires all of the patterns.
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
        raise UsageError(f"{option} {model}: no config.json in that folder; give a folder written by save_pretrained")
    if not _has_weights(folder):
        raise UsageError(
            f"{option} {model}: no weights in that folder; expected model.safetensors or pytorch_model.bin"
        )
    _require_shards(folder, model, option)
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob(_WEIGHTS[0])):
        try:
            # safetensors calls a file that may not be read missing.
            path.open("rb").close()
            # Reads the header only; detects truncated files.
            with safe_open(path, framework="np"):
                pass
        except PermissionError as error:
            raise UsageError(f"{option} {model}: this user may not read {path.name}; ask its owner") from error
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{option} {model}: {path.name} is damaged ({error}); get the file again") from error


def _require_shards(folder: Path, model: str, option: str) -> None:
    """Every file that the index of the weights names, if transformers reads one. Raises UsageError.

    transformers looks for these files in this order. The index of the other format may name files that were never
    downloaded.
    """
    places = (
        folder / name for whole in ("model.safetensors", "pytorch_model.bin") for name in (whole, f"{whole}{_INDEX}")
    )
    read = next((path for path in places if path.is_file()), None)
    if read is None or not read.name.endswith(_INDEX):
        return
    try:
        files = set(json.loads(read.read_text(encoding="utf8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(f"{option} {model}: {read.name} is damaged ({error!r}); get the file again") from error
    missing = sorted(name for name in files if not (folder / str(name)).is_file())
    if missing:
        raise UsageError(
            f"{option} {model}: {read.name} names {len(files)} files, of which {len(missing)} are missing, such "
            f"as {missing[0]}; get the folder again"
        )


def _folder_digest(folder: Path) -> str:
    files = sorted(path for pattern in ("*.json", "*.txt", "*.model", *_WEIGHTS) for path in folder.glob(pattern))
    return joint_digest({path.name: path for path in files})


def _descriptive_name(folder: Path) -> str:
    """The last of three path components that is not generic, or else the name or type in the config."""
    for part in reversed(folder.resolve().parts[-3:]):
        if not _GENERIC_NAMES.fullmatch(part):
            return part
    config = json.loads((folder / "config.json").read_text(encoding="utf8"))
    return str(config.get("_name_or_path") or config.get("model_type") or "local-model")


def licence_of(pretrained: PretrainedSource) -> dict[str, str]:
    """The licence in the model card's metadata: ``license`` and, if given, ``license_name`` and ``license_link``.

    Empty without a card or a licence in it.
    """
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        metadata = metadata_load(pretrained.folder / _CARD) or {}
    except (OSError, ValueError, YAMLError):
        return {}
    fields = {name: metadata[name] for name in _LICENCE_FIELDS if isinstance(metadata.get(name), str)}
    return fields if "license" in fields else {}


def quiet_transformers() -> None:
    """Switch off transformers' progress bars and its warnings about newly initialised heads, which are intended."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_tokenizer(
    pretrained: PretrainedSource, *, of_words: bool = False, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token; ``of_words`` for texts split into words. Raises UsageError."""
    from transformers import AutoTokenizer

    quiet_transformers()
    try:
        tokenizer = AutoTokenizer.from_pretrained(pretrained.folder, trust_remote_code=trust_remote_code)
        if of_words and _glues_words(tokenizer):
            tokenizer = AutoTokenizer.from_pretrained(
                pretrained.folder, add_prefix_space=True, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # transformers raises many kinds of errors for damaged files
        raise UsageError(f"the tokenizer of {pretrained.name} cannot be loaded: {_first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # Without the files, transformers returns an empty tokenizer instead of raising.
        raise UsageError(
            f"the tokenizer of {pretrained.name} has no vocabulary; tokenizer.json or vocab.txt may be missing"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UsageError(f"the tokenizer of {pretrained.name} has neither a padding token nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def auto_class(kind: Kind) -> Any:
    """The class of transformers that loads models for a kind of task."""
    import transformers

    return getattr(transformers, kind.auto_model)


def _glues_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word that is given alone is read as the rest of another: RoBERTa's tokens hold the space before."""
    if not tokenizer.is_fast:
        return False
    stored = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] or {}
    parts = stored.get("pretokenizers", [stored])
    return any(part.get("type") == "ByteLevel" and not part.get("add_prefix_space") for part in parts)


def outline(pretrained: PretrainedSource, kind: Kind, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model on torch's meta device, without weights. Raises UnsupportedModelError if there is no such head."""
    import torch
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(pretrained.folder, trust_remote_code=trust_remote_code)
        if (depth := getattr(config, "num_hidden_layers", 0)) > MAX_LAYERS:
            raise ValueError(f"its config has {depth} layers, at most {MAX_LAYERS} are allowed")
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(kind).from_config(config, trust_remote_code=trust_remote_code)
        for path in pretrained.folder.glob(_WEIGHTS[1]):
            # A pickle can run code, so only tensors are allowed. Checked before a study is created.
            torch.load(path, weights_only=True, map_location="meta")
    except Exception as error:  # transformers raises many kinds of errors for damaged files
        raise UnsupportedModelError(
            f"{pretrained.name} cannot be used for {kind.pipeline.replace('-', ' ')}: {_first_line(error)}"
        ) from error
    return model


def load_pretrained(
    folder: Path, *, name: str, kind: Kind, label_names: Iterable[str], pad_token: int, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, frozenset[str]]:
    """The model in fp32 with a head for the task, and the names of the parameters that are not pre-trained.

    Scores have no label names. Raises UnsupportedModelError if transformers has no such head for the model.
    """
    import torch
    from transformers import AutoConfig

    from budget_search.models.layer_stack import building

    quiet_transformers()
    names = tuple(label_names)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        config.id2label = dict(enumerate(names)) if names else {0: "score"}
        config.label2id = {label: index for index, label in config.id2label.items()}
        config.problem_type = kind.problem_type
        _disable_caches(config)
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = pad_token
        with building:
            model, loading = auto_class(kind).from_pretrained(
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
            f"{name} cannot be loaded for {kind.pipeline.replace('-', ' ')}: {_first_line(error)}"
        ) from error
    missing = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    body = f"{model.base_model_prefix}."
    missing |= {key for key, _ in model.named_parameters() if not key.startswith(body)}
    return model, frozenset(missing)


def fresh_head(model: PreTrainedModel, fresh: frozenset[str], seed: int) -> None:
    """Re-initialise the parameters named in ``fresh`` from the seed, with the model's own initialisation."""
    import torch

    from budget_search.models.layer_stack import building

    torch.manual_seed(seed)
    owners = {key.rpartition(".")[0] for key in fresh}
    with building, torch.no_grad():
        for name, module in model.named_modules():
            if name in owners:
                for parameter in module.parameters(recurse=False):
                    # Transformers marks loaded weights with this flag and skips them when it initialises.
                    vars(parameter).pop("_is_hf_initialized", None)
                model._init_weights(module)


def _disable_caches(config: Any) -> None:
    """Switch off XLNet's memories and the key-value cache of decoders, which a classifier does not use."""
    for name in ("use_mems_eval", "use_mems_train", "use_cache"):
        if hasattr(config, name):
            setattr(config, name, False)


def _first_line(error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return "it contains its own code; read that code, then allow it with --trust-remote-code"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
