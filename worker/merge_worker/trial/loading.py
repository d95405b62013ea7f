"""Config, tokenizer, chat template and weights of a model by transformers, with every fault."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UsageError, WorkerError
from ..messages import counted, first_names, printable
from .libraries import first_line, quiet
from .source import Source, unknown_type

if TYPE_CHECKING:
    import torch

AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForImageTextToText",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForMaskedLM",
    "AutoModel",
)
"""Classes for a config that names none, in order: the first that knows its type is taken."""

MESSAGE = "Hello"
_REPORTED = re.compile(
    r"^\s*(\S+)\s*\|\s*(?:MISSING|UNEXPECTED|MISMATCH|CONVERSION)\b", re.MULTILINE
)


@dataclass
class Loaded:
    """A loaded model and what is wrong with it.

    `faults` make its results wrong; `warnings` do not. `model` is None if it cannot be built.
    """

    source: Source
    model: Any = None
    tokenizer: Any = None
    template: bool = False
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    nonfinite: list[str] = field(default_factory=list)


def load(transformers: Any, source: Source, device: torch.device, trust: bool) -> Loaded:
    """Load a model, the small files first. Faults are collected.

    Raises InputError if this transformers does not know the model, UsageError if it needs another
    package or code of the model that is not trusted.
    """
    loaded = Loaded(source)
    config = _config(transformers, source, trust)
    _load_tokenizer(transformers, loaded, trust)
    model_class = _model_class(transformers, config, source, trust)
    _load_weights(transformers, loaded, model_class, trust)
    if loaded.model is not None:
        _check_weights(loaded)
        _check_tokens(loaded)
        loaded.model = loaded.model.to(device).eval()
    return loaded


def _config(transformers: Any, source: Source, trust: bool) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(source.folder, trust_remote_code=trust)
    except ImportError as error:
        raise UsageError(f"{source.label}: requires another package: {first_line(error)}") from None
    except Exception as error:
        value = source.config
        kind = printable(str(value.get("model_type")))
        if "auto_map" in value and not trust:
            raise UsageError(
                f"{source.label}: its classes are code in its own folder\n"
                f"  read that code, then allow it with --trust-remote-code"
            ) from None
        known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
        if value.get("model_type") not in known:
            near = unknown_type(transformers, value)
            raise InputError(
                f"{source.label}: model_type '{kind}' is unknown to transformers "
                f"{transformers.__version__}{near}{_wanted(value)}"
            ) from None
        raise InputError(f"{source.label}: config.json: {first_line(error)}") from None


def _wanted(config: dict[str, Any]) -> str:
    version = config.get("transformers_version")
    return f"\n  it was saved with {printable(str(version))}" if version else ""


def _load_tokenizer(transformers: Any, loaded: Loaded, trust: bool) -> None:
    """Load the tokenizer, and render the chat template if there is one."""
    source = loaded.source
    if not source.has_tokenizer:
        loaded.warnings.append("no tokenizer; token ids are used in place of text")
        return
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source.folder, trust_remote_code=trust
        )
        tokenizer(MESSAGE)
    except ImportError as error:
        loaded.warnings.append(f"the tokenizer requires another package: {first_line(error)}")
        return
    except Exception as error:
        loaded.faults.append(f"the tokenizer does not load: {first_line(error)}")
        return
    loaded.tokenizer = tokenizer
    if getattr(tokenizer, "chat_template", None):
        try:
            render(tokenizer, MESSAGE)
            loaded.template = True
        except ImportError as error:
            loaded.warnings.append(f"the chat template requires jinja2: {first_line(error)}")
        except Exception as error:
            loaded.faults.append(f"the chat template does not render: {first_line(error)}")


def render(tokenizer: Any, text: str) -> Any:
    """Return the token ids of a message of the user, as tensors, by the chat template."""
    contents = (text, [{"type": "text", "text": text}])
    for content in contents:
        try:
            return tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            )
        except Exception:
            if content is contents[-1]:
                # The plain form has the error that tells.
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
                )
                raise
    raise AssertionError


def _model_class(transformers: Any, config: Any, source: Source, trust: bool) -> Any:
    """Return the class that the config names, or the first one for its type."""
    names = [str(name) for name in getattr(config, "architectures", None) or ()]
    remote = getattr(config, "auto_map", None) or {}
    if trust:
        autos = [auto for auto in remote if auto.startswith("AutoModel")]
        if autos:
            best = sorted(autos, key=lambda a: AUTO_CLASSES.index(a) if a in AUTO_CLASSES else -1)
            return getattr(transformers, best[0])
    for name in names:
        if (found := getattr(transformers, name, None)) is not None:
            return found
    if names:
        hint = (
            "\n  its code is in its folder: --trust-remote-code"
            if remote
            else _wanted(source.config)
        )
        raise InputError(
            f"{source.label}: class '{printable(names[0])}' is not in transformers "
            f"{transformers.__version__}{hint}"
        )
    for name in AUTO_CLASSES:
        auto = getattr(transformers, name, None)
        if auto is not None and type(config) in auto._model_mapping:
            return auto
    kind = printable(str(config.model_type))
    raise InputError(f"{source.label}: transformers has no model for model_type '{kind}'")


def _load_weights(transformers: Any, loaded: Loaded, model_class: Any, trust: bool) -> None:
    """Build the model; note missing, unexpected and mismatched keys."""
    source = loaded.source
    given = source.tensors()
    settings: dict[str, Any] = {
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # else the first ends the list
        "dtype": "auto",
        "local_files_only": True,
    }
    if "Auto" in model_class.__name__:
        settings["trust_remote_code"] = trust
    if given is not None:
        config = transformers.AutoConfig.from_pretrained(source.folder, trust_remote_code=trust)
        dtypes = [one.dtype for one in given.values() if one.is_floating_point()]
        settings |= {"config": config, "state_dict": given}
        settings["dtype"] = max(dtypes, key=dtypes.count) if dtypes else "auto"
    place = None if given is not None else source.folder
    with quiet(transformers) as heard:
        try:
            loaded.model, info = model_class.from_pretrained(place, **settings)
        except ImportError as error:
            text = first_line(error)
            raise UsageError(f"{source.label}: requires another package: {text}") from None
        except WorkerError:  # a signal
            raise
        except MemoryError:
            raise InputError(f"{source.label}: does not fit in memory") from None
        except Exception as error:
            names = [name for text in heard for name in _REPORTED.findall(text)]
            where = f": {first_names(dict.fromkeys(names))}" if names else ""
            loaded.faults.append(
                f"transformers cannot load its weights{where}: {first_line(error)}"
            )
            return
    loaded.missing = sorted(info["missing_keys"])
    loaded.unexpected = sorted(info["unexpected_keys"])
    loaded.mismatched = [
        f"{name} ({_shape(stored)}, the config makes it {_shape(expected)})"
        for name, stored, expected in sorted(info["mismatched_keys"])
    ]
    _note(loaded, loaded.missing, "tensors are missing")
    _note(loaded, loaded.unexpected, "tensors have no place in the model")
    _note(loaded, loaded.mismatched, "tensors have another shape")


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _note(loaded: Loaded, names: Sequence[str], what: str) -> None:
    if names:
        loaded.faults.append(f"{counted(len(names), what)}: {first_names(names)}")


def _check_weights(loaded: Loaded) -> None:
    """Note parameters with NaN or Inf, and a head that the config hides."""
    import torch

    model = loaded.model
    loaded.nonfinite = [
        name
        for name, weight in model.named_parameters()
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all())
    ]
    _note(loaded, loaded.nonfinite, "tensors have NaN or Inf")
    text = model.config.get_text_config()
    ties = all(getattr(c, "tie_word_embeddings", True) for c in (model.config, text))
    # Transformers 5 keeps a head that differs from the embedding; other programs do not.
    if ties and model.can_generate() and _has_own_head(model):
        loaded.faults.append(
            "the config ties the head to the embedding (tie_word_embeddings), but the weights have "
            "a head of their own"
        )


def _has_own_head(model: Any) -> bool:
    """Return whether a head that the class of a model ties has other values than its embedding."""
    import torch

    head = _embedding(model, "get_output_embeddings")
    tied = getattr(model, "_tied_weights_keys", None)
    if head is None or not isinstance(tied, dict):
        return False
    weights = dict(model.named_parameters(remove_duplicate=False))
    other = next((weights.get(tied[name]) for name in tied if weights.get(name) is head), None)
    return other is not None and other.shape == head.shape and not torch.equal(head, other)


def _embedding(model: Any, kind: str) -> Any:
    """Return the weight of the embedding or the head; None if a model has none."""
    try:
        return getattr(getattr(model, kind)(), "weight", None)
    except Exception:  # models without either raise errors of several classes
        return None


def _check_tokens(loaded: Loaded) -> None:
    """Note tokens whose ids have no row in the embedding."""
    weight = _embedding(loaded.model, "get_input_embeddings")
    if loaded.tokenizer is None or weight is None or weight.ndim != 2:
        return
    rows, ids = weight.shape[0], loaded.tokenizer.get_vocab()
    beyond = sorted((token for token, number in ids.items() if number >= rows), key=ids.get)
    if beyond:
        what = counted(len(beyond), "tokens are beyond the embedding")
        loaded.faults.append(f"{what} of {counted(rows, 'rows')}: {first_names(beyond)}")
