"""Every setting and option is run by a test through the command line, and the table of them is up to date."""

from __future__ import annotations

import pytest
import tested_settings
from plugin_list import needs_all_plugins
from tested_settings import Line, named, refused

RUN_BY = tested_settings.run_by()


@pytest.mark.parametrize("name", tested_settings.documented())
def test_a_command_line_of_a_test_gives(name):
    assert name in RUN_BY, "add it to a line in tests/cli/settings/"


@needs_all_plugins
def test_the_table_is_up_to_date():
    assert tested_settings.TARGET.read_text(encoding="utf-8") == tested_settings.page(), "`make publish` renews it"


def test_a_line_counts_for_what_its_words_say():
    assert named(Line("run rank=16 alpha=3 +data.columns.topic=t method=full")) == {
        *("run", "alpha", "data.columns", "method=")  # a rank of 16 is the default
    }
    assert named(Line("table demo --format csv --price 2")) == {"table", "table --format csv", "table --price"}
    assert named(Line("completion zsh")) == {"completion", "completion zsh"}
    assert named(Line("view --port {port}")) == {"view", "view --port"}
    assert named(refused("run train.nodes=2", "")) == {"run", "train.nodes"}
