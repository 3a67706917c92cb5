"""Tasks for chat models without log-probabilities: the same items, with generated answers."""

from __future__ import annotations

import re
from typing import Any

from harness.errors import UserError
from harness.job.data import sources
from harness.job.evaluate import scoring, task_index
from harness.job.evaluate.held_out.task import HeldOutTask
from harness.settings import EvalSettings

GENERATED = "generate_until"  # lm-eval's name for tasks with generated answers; others compare log-probabilities
# Names of generative variants of tasks that compare log-probabilities, as in lm-eval's mmlu, gpqa and bigbench.
STAND_INS = [(r"$", "_generative"), (r"_n_shot$", "_generative_n_shot"), (r"_multiple_choice$", "_generate_until")]
# If choices are letters, lm-eval compares the whole reply with a letter. Chat models often write more, such as
# "The answer is (B).", so a second filter finds the letter before the choice's text, or in such a phrase.
LETTER = r"^\W*([{0}])(?:[.):*]|\s*$)|\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?: is|:)?\W*([{0}])\b"
ASKED = " (chat)"  # after a task's name: another measurement, which is never compared with the task's


class ChatTasks(scoring.Tasks):
    """As `Tasks`, with generative variants of tasks that compare log-probabilities.

    A variant has the same items as its task. Raises UserError if there is none.
    """

    messages_alone = True

    def __init__(
        self,
        settings: EvalSettings,
        data_root: str | None,
        own: HeldOutTask | None = None,
        include: task_index.IncludedTasks | None = None,
    ):
        super().__init__(settings, data_root, own, include)
        with sources.with_data_root(data_root):
            asked = {name: self._asked(name, loaded["tasks"]) for name, loaded in self.by_name.items()}
        pairs = {leaf: pair for _, by_leaf in asked.values() for leaf, pair in by_leaf.items()}
        self.sample = {pairs[leaf][0]: items for leaf, items in self.sample.items()}
        self.leaves = dict(pairs.values())
        variants = {}
        for name, (stand_in, by_leaf) in asked.items():
            variant = stand_in + ASKED
            group = self.by_name[name]["groups"].get(name)
            variants[variant] = {"tasks": dict(by_leaf.values()), "groups": {variant: group} if group else {}}
        self.by_name = variants
        self._settle(settings)
        self.put |= {"apply_chat_template": True, "fewshot_as_multiturn": True}

    def _asked(self, name: str, leaves: dict[str, Any]) -> tuple[str, dict[str, tuple[str, Any]]]:
        """The name of the generative variant of the task or group `name`; and of each leaf, its name and the task."""
        if all(task.OUTPUT_TYPE == GENERATED for task in leaves.values()):
            return name, {leaf: (leaf, task) for leaf, task in leaves.items()}
        other = _stand_in(name)
        variants = self._load(task_index.stock(), other)["tasks"] if other else {}
        asked = {leaf: new for leaf in leaves for new in _names(leaf) if new in variants}
        alike = asked.keys() == leaves.keys() and all(
            _alike(leaves[leaf], variants[new]) for leaf, new in asked.items()
        )
        if other is None or not alike:
            raise UserError(
                f"eval.tasks={name} requires log-probabilities, which chat endpoints do not return, and lm-eval has no "
                "generative variant of it; omit it, or set model.tokenizer if the endpoint returns log-probabilities."
            )
        for leaf, new in asked.items():
            _have_letters_read(leaves[leaf], variants[new])
        return other, {leaf: (new, variants[new]) for leaf, new in asked.items()}


def _stand_in(name: str) -> str | None:
    """The generative variant of the task or group `name`, if lm-eval has one."""
    known = task_index.stock().all_tasks
    return next((other for other in _names(name) if other in known), None)


def _names(name: str) -> list[str]:
    return [re.sub(old, new, name) for old, new in STAND_INS if re.search(old, name)]


def _have_letters_read(task: Any, other: Any) -> None:
    """Add the filter `letter` to the variant `other`, if the choices of `task` are letters."""
    choices = task.config.doc_to_choice
    if isinstance(choices, list) and all(re.fullmatch("[A-Z]", choice) for choice in choices):
        scoring.filtered_too(other, "letter", LETTER.format("".join(choices)))


def _alike(task: Any, other: Any) -> bool:
    """Whether both have the same items, in the same order."""
    origins = [(t.config.dataset_path, t.config.dataset_name, t.config.test_split) for t in (task, other)]
    return other.OUTPUT_TYPE == GENERATED and origins[0] == origins[1] and len(task.eval_docs) == len(other.eval_docs)
