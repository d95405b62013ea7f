"""`chat_template` of a recipe: the models' own, a well-known one, a text or a file. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.folder import exists
from ..checkpoint.json_files import read_json
from ..errors import UsageError
from ..messages import nearest, printable
from .files import SETTINGS, SideFiles, to_json

FILE, OLD_FILE = "chat_template.jinja", "chat_template.json"
SHORTEST = 20
"""Characters: what is shorter and no file is a misspelt name."""

_EACH = "{% for message in messages %}"
_ROLE, _TEXT = "message['role']", "message['content']"

BUILT_IN = {
    "alpaca": f"{_EACH}{{% if {_ROLE} == 'system' %}}{{{{ {_TEXT} }}}}{{% else %}}"
    f"{{{{ ('### Instruction:\\n' if {_ROLE} == 'user' else '### Response:\\n') + {_TEXT} }}}}"
    "{% endif %}{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}",
    "chatml": f"{_EACH}{{{{ '<|im_start|>' + {_ROLE} + '\\n' + {_TEXT} + '<|im_end|>\\n' }}}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "exaone": "{% if messages[0]['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}"
    f"{{% endif %}}{_EACH}{{{{ '[|' + {_ROLE} + '|]' + {_TEXT} + "
    f"('\\n' if {_ROLE} == 'user' else '[|endofturn|]\\n') }}}}{{% endfor %}}"
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}",
    "llama3": f"{{{{ bos_token }}}}{_EACH}{{{{ '<|start_header_id|>' + {_ROLE} + "
    f"'<|end_header_id|>\\n\\n' + {_TEXT} | trim + '<|eot_id|>' }}}}{{% endfor %}}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "mistral": "{% set system = messages[0]['role'] == 'system' %}"
    "{% set turns = messages[1:] if system else messages %}{{ bos_token }}"
    "{% for message in turns %}"
    f"{{% if ({_ROLE} == 'user') != (loop.index0 % 2 == 0) %}}"
    "{{ raise_exception('user and assistant take turns, and the user begins') }}{% endif %}"
    f"{{% if {_ROLE} == 'user' %}}{{{{ ' [INST] ' + (messages[0]['content'] + '\\n\\n' "
    f"if system and loop.first else '') + {_TEXT} + ' [/INST]' }}}}"
    f"{{% else %}}{{{{ ' ' + {_TEXT} + eos_token }}}}{{% endif %}}{{% endfor %}}",
}


def own_template(files: SideFiles) -> str | None:
    """Return the template that a model's files have."""
    raw = files.read(FILE)
    if raw is not None:
        return raw.decode(errors="replace")
    for name in (SETTINGS, OLD_FILE):
        given = files.json(name).get("chat_template")
        if isinstance(given, list):
            named = {t.get("name"): t.get("template") for t in given if isinstance(t, dict)}
            given = named.get("default")
        if isinstance(given, str):
            return given
    return None


def asked_template(
    asked: str, side_files: Sequence[SideFiles], relative_to: Path, where: str
) -> str | None:
    """Return the template that a recipe asks for; None if no model has one. Raises UsageError."""
    if asked == "auto":
        templates = [t.strip() for files in side_files if (t := own_template(files))]
        # The most frequent; among equals the first model's.
        return max(templates, key=templates.count) if templates else None
    if asked in BUILT_IN:
        return BUILT_IN[asked]
    path = relative_to / asked
    if len(asked) < 4096 and "\n" not in asked and exists(path) and path.is_file():
        if path.suffix == ".json":
            value = read_json(path)
            return str(value.get("chat_template", "")) if isinstance(value, dict) else ""
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"{where}: chat_template {printable(str(path))}: not UTF-8") from None
    if len(asked) < SHORTEST or "{" not in asked:
        raise UsageError(
            f"{where}: chat_template '{printable(asked)[:60]}' is not one of auto, "
            f"{', '.join(BUILT_IN)}{nearest(asked, ['auto', *BUILT_IN])}, no file, and no template"
        )
    return asked


def with_template(files: SideFiles, template: str) -> dict[str, bytes]:
    """Return the files that change when a model gets a template."""
    if (own_template(files) or "").strip() == template.strip():
        return {}
    changed = {FILE: template.encode(errors="replace")}
    for name in (SETTINGS, OLD_FILE):
        settings = files.json(name)
        if "chat_template" in settings:
            changed[name] = to_json({**settings, "chat_template": template})
    return changed
