"""What must not be told: secrets, and where things lie on this machine.

Records, logs, tables and reports are passed on. Tokens and keys come from the environment and stay there: a setting
that holds one is refused, and what libraries say of a failure is cleaned before it is written.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import UserError

# Of environment variables whose values are secrets, as of HF_TOKEN, OPENAI_API_KEY, AWS_SECRET_ACCESS_KEY, PGPASSWORD,
# DBPASS, MYSQL_PWD, GITHUB_PAT. PWD and OLDPWD are folders, and the value of GIT_ASKPASS is a program.
NAMES = re.compile(
    r"(^|_)(TOKENS?|KEY|APIKEY|SECRETS?|CREDENTIALS?|PASSPHRASE|PAT)(_|$)|PASSW(OR)?D"
    r"|(?<!ASK)(?<!BY)(?<!COM)PASS$|(?<!^)(?<!^OLD)PWD$",
    re.IGNORECASE,
)
# Of settings that libraries take secrets by.
KEYS = {"token", "hf_token", "use_auth_token", "auth_token", "access_token", "api_key", "password", "secret"}
named: set[str] = set()  # further variables that hold secrets, as settings say (model.key_env)
LEAST = 8  # characters; what is shorter is no secret, and may stand anywhere
SHAPES = [
    re.compile(r"(?<=://)[^/\s@]+(?=@)"),  # https://user:password@host
    # user:password@host; after the @ of hub:gsm8k@COMMIT stands no host. Bounded, as a log may have very long lines.
    re.compile(r"(?<![\w/.-])[^\s/:@'\"]{1,128}+:[^\s/@'\"]{1,512}+(?=@)(?!@[0-9a-f]{40}\b)"),
    re.compile(r"\b(hf_|sk-|gh[pousr]_|github_pat_|glpat-)[\w-]{20,}"),
    re.compile(r"\b(xox[a-z]|xapp)-[\w-]{10,}"),  # Slack's
    re.compile(r"\bAIza[\w-]{35}"),  # Google's
    re.compile(r"\bA[KS]IA[A-Z0-9]{16}\b"),  # Amazon's
    re.compile(r"\beyJ[\w-]{8,1024}+(\.[\w-]*){2,4}"),  # a JSON web token
    # After "Bearer", what no word of a sentence looks like: it has a digit, or is long.
    re.compile(r"(?i:(?<=\bbearer ))((?=\S*\d)[\w.~+/=-]{8,}|[\w.~+/=-]{20,})"),
]
HIDDEN = "***"


def redact(text: str) -> str:
    """`text` without the environment's secrets, and without what looks like one."""
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    for shape in SHAPES:
        text = shape.sub(HIDDEN, text)
    return text


def clean(text: str) -> str:
    """`text` without secrets, its paths relative to the working directory, or else to the home."""
    text = redact(text)
    for folder, instead in ((Path.cwd(), ""), (Path.home(), "~/")):
        if folder != folder.parent:
            text = text.replace(f"{folder}/", instead)
    return text


def reason(error: Exception) -> str:
    """The kind of `error` and the first line of its message, cleaned."""
    lines = clean(str(error)).strip().splitlines()
    return ": ".join([type(error).__name__, *(" ".join(line.split()) for line in lines[:1])])


def scrub(path: Path) -> None:
    """Take secrets out of a file of text, which is left alone if there are none."""
    text = path.read_bytes().decode(errors="surrogateescape")  # bytes, for a progress bar's carriage returns
    if (redacted := redact(text)) != text:
        path.write_bytes(redacted.encode(errors="surrogateescape"))


def refuse(settings: dict[str, Any]) -> None:
    """Raise UserError for a setting that holds a secret: settings are recorded."""
    for key, value in leaves(settings):
        if isinstance(value, str) and hide(value, key.rpartition(".")[2]) != value:
            raise UserError(
                f"{key} holds what looks like a secret, and settings are recorded; leave it out and set it in the "
                "environment, as HF_TOKEN for the hub."
            )


def hide(value: Any, key: str = "") -> Any:
    """A setting without secrets, `key` being its own; a dict or list of settings likewise."""
    if isinstance(value, dict):
        return {name: hide(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [hide(part, key) for part in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if key in KEYS else redact(value)


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted key and the value of everything in `value` that is neither dict nor list."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part, key)
    else:
        yield key, value


def _secrets() -> list[str]:
    """Values of the environment's secrets, the longest first: one may be a part of another."""
    # Stripped as they are sent: files of keys end in a line's end.
    secret = {name: value.strip() for name, value in os.environ.items() if name in named or _holds_secret(name)}
    # A folder is none, as of ORIGINAL_PWD: it begins most paths.
    secrets = {value for value in secret.values() if len(value) >= LEAST and not os.path.isdir(value)}
    return sorted(secrets, key=len, reverse=True)


@functools.cache  # asked of all variables for every text
def _holds_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return NAMES.search(name) is not None
