"""The cards of conf/device: what ships is plausible and has a source, what is wrong is named."""

from __future__ import annotations

import pytest

from harness.config import CONF
from harness.errors import UserError
from harness.sweep.estimates import card as cards

NAMES = sorted(path.stem for path in (CONF / "device").glob("*.yaml"))
GOOD = "memory_gib: 24\nbf16_tflops: 100\nfp32_tflops: 50\nbandwidth_gb: 900\nsource: a test\n"


def test_a_dozen_cards_ship():
    assert {"rtx_3060_12", "rtx_3090", "rtx_4090", "rtx_5090", "t4", "a10g", "l4", "l40s"} <= set(NAMES)
    assert {"a100_40", "a100_80", "h100", "h200", "b200"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_card_has_a_source_and_no_price(name):
    card = cards.load(name)
    assert card.name == name
    assert card.source.startswith("NVIDIA, ")
    assert card.price is None  # prices change
    assert len(card.devices) >= 1
    assert 10 * 2**30 < card.memory < 200 * 2**30
    assert card.rates.bandwidth == card.bandwidth_gb * 1e9 > 1e11
    if card.rates.bf16 is not None:  # of tensor cores, so above that of fp32, and above what memory can feed
        assert 1.5 * card.rates.fp32 <= card.rates.bf16 < 1000 * card.rates.bandwidth


def test_devices_are_of_one_card():
    devices = [device for name in NAMES for device in cards.load(name).devices]
    assert len(devices) == len(set(devices))


def test_a_card_of_ones_own_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "device").mkdir(parents=True)
    (tmp_path / "conf" / "device" / "mine.yaml").write_text(GOOD + "price: 2.5\ndevices: [Mine]\n")
    card = cards.load("mine")
    assert (card.memory, card.rates.bf16, card.price, card.devices) == (24 * 2**30, 1e14, 2.5, ["Mine"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + "price: -1\n", "price in conf/device/mine.yaml must be positive, got -1."),
        (GOOD.replace("24", "a lot"), "conf/device/mine.yaml is wrong: .*a lot"),
        (GOOD + "prize: 2\n", "conf/device/mine.yaml is wrong: .*prize"),
        (GOOD.replace("memory_gib: 24\n", ""), "conf/device/mine.yaml is wrong: .*memory_gib"),
        ("- 24\n", "conf/device/mine.yaml is wrong"),
        ("a: [\n", "conf/device/mine.yaml is wrong"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "device").mkdir(parents=True)
    (tmp_path / "conf" / "device" / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        cards.load("mine")


def test_an_unknown_card_has_near_names():
    with pytest.raises(UserError, match=r"--device=a100_8O is unknown\. There is: cpu, cuda, a100_40, a100_80"):
        cards.load("a100_8O")


@pytest.mark.parametrize("name", ["rtx_4090", "RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090"])
def test_spelling_of_a_card_does_not_count(name):
    assert cards.load(name).name == "rtx_4090"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a100", r"Did you mean a100_40 or a100_80\?"),
        ("4090", r"Did you mean rtx_4090\?"),
        ("H100 PCIe", r"Did you mean h100\?"),
        ("rtx_4080", "There is: cpu, cuda"),
        ("v100", "There is: cpu, cuda"),
    ],
)
def test_another_card_is_not_suggested(name, said):
    with pytest.raises(UserError, match=said):
        cards.load(name)


def test_a_card_is_known_by_the_name_that_torch_gives_it():
    assert cards.load("NVIDIA H100 80GB HBM3").name == "h100"
