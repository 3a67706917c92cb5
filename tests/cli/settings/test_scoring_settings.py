"""Settings of scoring, run by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from serving import NAME, chatty
from tested_settings import CELL, SMALL, lines, refused
from tiny_encoder import saved_encoder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The tiny model with a chat template."""
    return chatty(tmp_path_factory.mktemp("chatty") / NAME)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return saved_encoder(tmp_path_factory.mktemp("encoders") / "encoder")


@lines(
    f"run {CELL} method=base study=chat model.path={{model}} eval.tasks=[parity,facts] eval.include_path={{tasks}} "
    "eval.limit=3 eval.num_fewshot=2 eval.batch_size=3 eval.seed=4 eval.chat_template=true "
    "eval.fewshot_as_multiturn=true eval.system_instruction=Briefly.",
    f"run {CELL} method=base study=unsafe eval.unsafe_code=true",
    f"run {CELL} method=base study=plain eval.vllm_python={{folder}}/python",  # which no engine needs
    f"run {SMALL} method=base study=prose data=local data.path={{folder}}/prose.jsonl eval.tasks=[held_out] "
    "eval.bertscore={encoder}",
    refused(f"run {CELL} eval.engine=other", r"eval\.engine=other is unknown"),
    "score chat --tasks facts --limit 2 --num-fewshot 1 --batch-size 2 --replace --chat-template "
    "--fewshot-as-multiturn --system-instruction Kindly. --unsafe-code --include-path {tasks} --data-root {tasks} "
    "--vllm-python {folder}/python",
    "score plain --study plain --tasks wordmath_short --limit 2 --results-dir results --format json",
    "score plain --study plain --tasks wordmath_short --limit 3 --replace --format text",
)
@pytest.mark.long
def test_questions_are_asked_as_settings_say(run, only, tasks, model, encoder, tmp_path):
    rows = [{"question": f"Tell of {i}.", "answer": f"This is a story that goes on for {i} days."} for i in range(60)]
    (tmp_path / "prose.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    *_, as_json, _ = run(tasks=tasks, model=model, encoder=encoder)
    chat = only("chat").cell.settings.eval
    assert (chat.num_fewshot, chat.batch_size, chat.seed) == (2, 3, 4)
    assert chat.chat_template
    assert chat.fewshot_as_multiturn
    assert only("unsafe").cell.settings.eval.unsafe_code
    assert chat.system_instruction == "Briefly."
    by_task = {score.task: score for score in only("chat").scores}
    assert by_task["parity"].n == 3
    assert (by_task["facts"].n, by_task["facts"].num_fewshot) == (2, 1)  # scored again
    assert only("plain").cell.settings.eval.engine == "auto"
    assert [(score.metric, score.filter) for score in only("prose").scores][-1] == ("bertscore", "encoder")
    assert json.loads(as_json.stdout)[0]["tasks"]


NOWHERE = "no installed plug-in runs cells of models behind an API|needs weights|is for models behind an API"


@pytest.mark.long
@lines(
    refused("run model.base_url=http://host/v1 model.price.read=1 model.price.written=2 --budget 5USD", NOWHERE),
    refused("run model.tokenizer=folder", NOWHERE),
    refused("run model.thinking=4", NOWHERE),
    refused("run model.key_env=KEY_OF_TESTS", NOWHERE),
)
def test_a_model_with_weights_has_no_settings_of_one_behind_an_api(run):
    run()
