"""The Modelfile from which `ollama create` makes a model: its prompt as in training, its end, greedy decoding.

The template is in Go's language, as ollama wants it. A chat template is written in Jinja, so its parts are read off
conversations that it renders; one that is not made of such parts has no counterpart here.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from harness.job.data import chat, columns

NAME = "Modelfile"
HEAD = """\
# ollama create NAME -f Modelfile; smaller: ollama create NAME -f Modelfile --quantize q4_K_M
"""
NO_TEMPLATE = (
    "# The chat template rewrites messages, so it has no counterpart here: ollama takes the GGUF's if it knows it.\n"
)


@dataclass(frozen=True)
class ChatParts:
    """The texts of a chat template around messages, in order: a system message if there is one, then turns.

    default: what stands before the first turn without a system message. asked: after the user's text, up to where the
    assistant's begins.
    """

    system: tuple[str, str]
    default: str
    user: str
    asked: str
    answered: str

    def render(self, turns: list[dict[str, str]]) -> str:
        """What `go` renders for these messages."""
        messages = [turn for turn in turns if turn["role"] != "system"]
        text = self.default
        if len(messages) < len(turns):
            text = self.system[0] + turns[0]["content"] + self.system[1]
        for turn in messages:
            before, after = ("", self.answered) if turn["role"] == "assistant" else (self.user, self.asked)
            text += before + turn["content"] + after
        return text

    @property
    def go(self) -> str:
        """The template in Go's language."""
        system = f"{_text(self.system[0])}{{{{ .System }}}}{_text(self.system[1])}"
        default = f"{{{{ else }}}}{_text(self.default)}" if self.default else ""
        user = f"{_text(self.user)}{{{{ .Content }}}}{_text(self.asked)}"
        return (
            f"{{{{ if .System }}}}{system}{default}{{{{ end }}}}"
            f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{user}'
            f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{_text(self.answered)}{{{{ end }}}}{{{{ end }}}}'
        )


def text(weights: str, tokenizer: PreTrainedTokenizerBase, prompt: str | None) -> str:
    """The Modelfile of the GGUF `weights` beside it.

    prompt: the prompt template of the data, whose field `question` (or first one) takes what is asked; null for
    conversations.
    """
    stops, template = [tokenizer.eos_token], None
    if prompt is not None:
        template = _question(prompt)
    elif (parts := chat_parts(tokenizer)) is not None:
        template = parts.go
        stops.append(parts.answered.strip())
    greedy = ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]  # ollama's own default is 1.1
    lines = [f"FROM ./{weights}", *_template(template), *greedy]
    lines += [f'PARAMETER stop "{stop}"' for stop in dict.fromkeys(stops) if stop and '"' not in stop]
    return HEAD + "\n".join(lines) + "\n"


def _template(template: str | None) -> list[str]:
    return [NO_TEMPLATE.strip()] if template is None or '"""' in template else [f'TEMPLATE """{template}"""']


def _question(prompt: str) -> str:
    """A prompt template with ollama's prompt where `harness ask` puts it, in its field for a question."""
    parts, own = [], columns.question_field(prompt)
    for literal, name, _, _ in string.Formatter().parse(prompt):
        parts.append(_text(literal))
        if name is not None and name == own:
            parts.append("{{ .Prompt }}")
            own = None  # once
    return "".join(parts)


def _text(literal: str) -> str:
    """`literal` as text in a Go template."""
    return literal.replace("{", '{{ "{" }}')


def chat_parts(tokenizer: PreTrainedTokenizerBase) -> ChatParts | None:
    """The parts of the tokenizer's chat template; None if it has none, or if it rewrites messages.

    The begin of the text is left out where the tokenizer, and so llama.cpp, adds it anyway.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None

    def rendered(*turns: tuple[str, str], ask: bool = True) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        text = chat.rendered(tokenizer, messages, add_generation_prompt=ask)
        begin = tokenizer.bos_token
        adds = begin is not None and tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
        return text.removeprefix(begin) if adds else text

    first, reply, second, rule = "FIRST-TEXT", "REPLY-TEXT", "SECOND-TEXT", "RULE-TEXT"
    turns = ("user", first), ("assistant", reply), ("user", second)
    try:
        plain, ruled = rendered(*turns), rendered(("system", rule), *turns)
        answered = rendered(*turns[:2], ask=False).partition(reply)[2]
        head, _, rest = plain.partition(first)
        asked, _, rest = rest.partition(reply)
        between = rest.partition(second)[0]
        user = between.removeprefix(answered)
        before, _, rest = ruled.partition(rule)
        after = rest.partition(first)[0]
        parts = ChatParts((before, after.removesuffix(user)), head.removesuffix(user), user, asked, answered)
        for system in ([], [{"role": "system", "content": "Be brief."}]):
            for texts in (["Hi?"], ["Two\nlines.", "Yes", "And?"]):
                said = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
                asked_of = [*system, *said]
                if parts.render(asked_of) != rendered(*((turn["role"], turn["content"]) for turn in asked_of)):
                    return None
    except TemplateError:
        return None
    return parts
