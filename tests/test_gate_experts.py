"""A record passes the gate whose adapters are on parts of the model that it names."""

from __future__ import annotations

import pytest
from job_helpers import tiny

from harness import gate
from harness.record import Record


@pytest.mark.parametrize(
    ("names", "refused"), [("[experts.down_proj,experts.gate_up_proj]", False), ("['../weights']", True)]
)
def test_experts_that_a_record_names_are_names_and_no_paths(names, refused):
    record = Record(tiny("method=lora", f"+method.adapt.target_parameters={names}"), "moe", "ok", "", 0.0, {})
    assert (gate.objection(record) is not None) == refused
