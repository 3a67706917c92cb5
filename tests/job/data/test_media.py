"""Files with images are refused in a sentence that names their column: LLaVA's layout, lists, and parts of turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_helpers import composed

from harness.errors import UserError
from harness.job.data import sources


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(rows: list[dict], *overrides: str, data: str = "local") -> str:
    Path("mine.json").write_text(json.dumps(rows))
    settings = composed("model=tiny", f"data={data}", "data.path=mine.json", *overrides).settings.data
    sources.splits(settings, None)
    return sources.own_data(settings, None).sentence


def llava(number: int, **image) -> dict:
    """A record as in LLaVA's llava_v1_5_mix665k.json, where records of text alone have no image."""
    talk = [
        {"from": "human", "value": f"{'<image>' if image else ''}\nWhat is {number}?"},
        {"from": "gpt", "value": f"It is a bus with the number {number}."},
    ]
    return {"id": f"{number:012}"} | image | {"conversations": talk}


@pytest.mark.parametrize(
    ("image", "column"),
    [
        ({"image": "coco/train2017/000000033471.jpg"}, "image"),
        ({"images": ["a.jpg", "b.jpg"]}, "images"),
        ({"image": {"bytes": "iVBORw0KGgo=", "path": None}}, "image"),
    ],
)
def test_a_file_of_llavas_layout_is_refused_by_its_column(image, column):
    rows = [llava(number, **(image if number % 3 else {})) for number in range(60)]
    said = rf"^mine\.json has images in its column '{column}', in 40 of 60 records; only text is trained, so remove"
    with pytest.raises(UserError, match=said):
        read(rows)
    with pytest.raises(UserError, match=said):
        read([row | {"text": str(row)} for row in rows], data="text")


def test_records_of_text_alone_are_read():
    assert read([llava(number) for number in range(60)]).startswith("mine.json is read as ShareGPT: 60 conversations")
    empty = [llava(number) | {"image": None, "images": []} for number in range(60)]
    assert read(empty) == "mine.json is read as ShareGPT: 60 conversations; not used: id."


def test_a_column_of_text_may_have_that_name():
    rows = [{"image": f"A picture of {number}.", "answer": f"It shows {number} as it is."} for number in range(60)]
    assert read(rows, "data.columns.question=image").endswith("60 records.")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "images"),
        ({"type": "image", "image": "a.png"}, "images"),
        ({"type": "input_image", "image_url": "a.png"}, "images"),
        ({"type": "input_audio", "input_audio": {}}, "sounds"),
        ({"type": "video", "video": "a.mp4"}, "videos"),
    ],
)
def test_parts_of_turns_are_refused_by_their_column(part, words):
    rows = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": f"What is {number}?"}, part]},
                {"role": "assistant", "content": "A bus."},
            ]
        }
        for number in range(60)
    ]
    with pytest.raises(UserError, match=rf"has {words} in the turns of its column 'messages', in 60 of 60 records"):
        read(rows)


def test_pairs_with_images_are_refused():
    rows = [{"prompt": f"{i}?", "images": ["a.png"], "chosen": "Yes.", "rejected": "No."} for i in range(60)]
    with pytest.raises(UserError, match="has images in its column 'images'"):
        read(rows, data="local_preference")
