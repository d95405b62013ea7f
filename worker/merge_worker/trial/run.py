"""A trial of a model: loaded by its class, then a few greedy tokens, or one forward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import WorkerError
from .libraries import first_line, load_transformers, quiet
from .loading import Loaded, load, render
from .source import opened

if TYPE_CHECKING:
    import torch

PROMPTS = ("What is the capital of France?", "Once upon a time", "def fibonacci(n):")
"""Prompts of a trial without others."""

UNTRAINED = 0.98
"""Entropy of the next token, as a part of ln V, above which a head seems untrained."""

LEAST_REPEATED = 8
"""Tokens from which on one repeated token is worth a warning."""


@dataclass(frozen=True)
class Text:
    """A prompt and what a model said next. `entropy` is that of the first token, in nats."""

    prompt: str
    text: str
    tokens: int
    entropy: float | None


@dataclass
class Trial:
    """The result for one model. `faults` make it unusable, `warnings` do not."""

    model: str
    kind: str = ""
    parameters: int = 0
    dtype: str = ""
    tokenizer: str = ""
    chat_template: bool = False
    did: str = ""
    texts: list[Text] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    nonfinite: list[str] = field(default_factory=list)
    transformers: str = ""

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TrialOptions:
    """Options of a trial. `tokens` is the most that are generated for a prompt."""

    prompts: tuple[str, ...] = PROMPTS
    tokens: int = 40
    device: str = "auto"
    trust_remote_code: bool = False


def run_trial(word: str, label: str, options: TrialOptions) -> Trial:
    """Load one model and let it run. Raises InputError or UsageError if it cannot be begun."""
    transformers = load_transformers("try")
    from ..engine.device import free_cached, select_devices

    device = select_devices(options.device)[0]
    with opened(word, label) as source, quiet(transformers):
        loaded = load(transformers, source, device, options.trust_remote_code)
        trial = _described(loaded, label, transformers.__version__)
        # What transformers has made up in place of missing tensors says nothing.
        if loaded.model is not None and not trial.faults:
            _run(loaded, trial, options)
        loaded.model = None
        free_cached(device)
    return trial


def _described(loaded: Loaded, label: str, version: str) -> Trial:
    model, tokenizer = loaded.model, loaded.tokenizer
    trial = Trial(
        label,
        faults=list(loaded.faults),
        warnings=list(loaded.warnings),
        missing=loaded.missing,
        unexpected=loaded.unexpected,
        mismatched=loaded.mismatched,
        nonfinite=loaded.nonfinite,
        tokenizer="" if tokenizer is None else type(tokenizer).__name__,
        chat_template=loaded.template,
        transformers=version,
    )
    if model is not None:
        trial.kind = type(model).__name__
        trial.parameters = sum(p.numel() for p in model.parameters())
        trial.dtype = str(model.dtype).removeprefix("torch.")
    return trial


def _run(loaded: Loaded, trial: Trial, options: TrialOptions) -> None:
    """Generate text if the model does, else run one forward pass; note what is wrong with it."""
    import torch

    from ..engine.device import OUT_OF_MEMORY
    from .forward import forward

    model = loaded.model
    speaks = loaded.tokenizer is not None and model.can_generate()
    reads = getattr(model, "main_input_name", "") == "input_ids"
    try:
        with torch.inference_mode():
            if speaks and reads:
                _speak(loaded, trial, options)
            else:
                trial.did, entropy, problem = forward(model, loaded.tokenizer, options.prompts[0])
                trial.warnings += [problem] if problem else []
                _judge(trial, model, [entropy])
    except WorkerError:  # a signal
        raise
    except OUT_OF_MEMORY:
        trial.warnings.append(f"does not fit in the memory of {model.device}; try --device cpu")
    except FloatingPointError as error:
        trial.faults.append(str(error))
    except Exception as error:
        trial.faults.append(f"loads, but does not run: {type(error).__name__}: {first_line(error)}")


def _speak(loaded: Loaded, trial: Trial, options: TrialOptions) -> None:
    from .forward import entropy_of

    model, tokenizer = loaded.model, loaded.tokenizer
    repeated: list[str] = []
    for prompt in options.prompts:
        inputs = _encoded(loaded, prompt)
        result = model.generate(
            **inputs,
            max_new_tokens=options.tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=_padding(tokenizer),
            return_dict_in_generate=True,
            output_logits=True,
        )
        start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        ids = result.sequences[0, start:].tolist()
        entropy = entropy_of(result.logits[0][0])
        trial.texts.append(
            Text(prompt, tokenizer.decode(ids, skip_special_tokens=True), len(ids), entropy)
        )
        said = ids[1:] if model.config.is_encoder_decoder else ids
        if len(said) >= LEAST_REPEATED and len(set(said)) == 1:
            repeated.append(tokenizer.decode(said[:1]))
    trial.did = "generated text"
    _judge(trial, model, [text.entropy for text in trial.texts])
    if len(repeated) == len(options.prompts):
        trial.warnings.append(f"says one token only, again and again: {repeated[0]!r}")


def _encoded(loaded: Loaded, prompt: str) -> Mapping[str, torch.Tensor]:
    tokenizer = loaded.tokenizer
    inputs = (
        render(tokenizer, prompt) if loaded.template else tokenizer(prompt, return_tensors="pt")
    )
    kept = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    if not kept["input_ids"].numel():
        raise ValueError(f"the tokenizer makes no token of {prompt!r}")
    return {name: tensor.to(loaded.model.device) for name, tensor in kept.items()}


def _padding(tokenizer: Any) -> int:
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((number for number in known if number is not None), 0)


def _judge(trial: Trial, model: Any, entropies: Sequence[float | None]) -> None:
    """Warn of a head that seems untrained."""
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None)
    known = [entropy for entropy in entropies if entropy is not None]
    if known and isinstance(vocabulary, int) and vocabulary > 1:
        part = min(known) / math.log(vocabulary)
        if part > UNTRAINED:
            trial.warnings.append(
                f"the next token is as good as random: entropy {min(known):.2f} nats of at most "
                f"{math.log(vocabulary):.2f}; is the head untrained?"
            )
